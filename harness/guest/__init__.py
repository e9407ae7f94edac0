"""A running guest: control port, SSH, console, and the worker that runs steps in it."""
