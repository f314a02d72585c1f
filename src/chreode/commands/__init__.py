"""The commands of `chreode.commands.app`. Their modules are light: ``ch.…`` loads what a command touches."""
