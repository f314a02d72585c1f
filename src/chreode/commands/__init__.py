"""The commands of `chreode.cli`. Their modules are light: ``ch.…`` loads what a command touches."""
