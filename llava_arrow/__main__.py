"""`python -m llava_arrow` is the command `llava-mixture`."""

from llava_arrow.cli import main

main(prog_name="llava-mixture")
