"""Emulated devices for people without a board: a Raspberry Pi's system, run by QEMU on this host.

They show that things run, agree and survive. They say nothing about a board's speed.
"""
