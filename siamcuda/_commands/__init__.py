"""The commands of ``siamcuda``, one module each, which has ``main(arguments)``.

A command is a dataclass of options, parsed by tyro, and ``run(options)``, which raises InputError
for what cannot be used. Add one here, and a line to the table in :mod:`siamcuda.cli`.
"""
