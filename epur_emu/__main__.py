"""``python -m epur_emu`` is ``epur``."""

from epur_emu.cli import main

main()
