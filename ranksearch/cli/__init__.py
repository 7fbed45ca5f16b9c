"""The command line: Hydra in, objects out; whatever the user can fix raises UserError before anything is written."""
