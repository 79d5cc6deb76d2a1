"""Pure translators, one folder for each wire: bytes and values in, bytes and values out. No framework, clock or I/O."""
