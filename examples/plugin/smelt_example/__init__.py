"""What smelt-example-plugin adds to smelt. Nothing here is imported before smelt needs it."""
