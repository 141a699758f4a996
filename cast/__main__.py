"""`python -m cast`."""

import sys

from cast.cli import main

sys.exit(main())
