"""The page: thin faces over `cast`, one file a tab."""
