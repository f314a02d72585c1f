"""See when a contrastive loss recovers latents, and what it loses if positives keep one of them."""

from chreode.identify import Setting, diversity
from chreode.losses.optima import rescaled
from chreode.plot import rescaled_losses

# Latents lie on a sphere, and a linear mixing makes seven data dimensions of three. With one seed, this
# takes less than a minute; the defaults are 2,000 steps and five seeds.
short = Setting(n_steps=300, hidden=(64, 64), lr=0.005)
study = diversity(["linear"], samplers=["theorem"], seeds=[0], base=short, progress=False)
for run, r2 in study.table()["r2"].items():
    print(f"{run:<36} R² {r2:.3f}")
print("by axis, the kept one first, with InfoNCE:", *study.axes().round(2).iloc[1])
for sentence in study.answer():
    print("-", sentence)

# Why: the loss of maps (u, λv), in closed form. Where u is kept, InfoNCE is lower at a λ below 1.
for corrected, name in ((False, "InfoNCE"), (True, "corrected")):
    losses = {
        factor: rescaled(factor, short.kappa, 3, 1, 2000, corrected=corrected)
        for factor in (0.6, 1.0, 1.7)
    }
    print(f"{name}: lowest at a factor of {min(losses, key=losses.get)}")

# The same as a picture: ax.figure.savefig("losses.svg") would write it.
ax = rescaled_losses(short.kappa, n_latent=3, n_fixed=1)
print("drawn:", ", ".join(text.get_text() for text in ax.get_legend().get_texts()))
