"""`python -m videofer` is `videofer`."""

import sys

from videofer.verbs import main

sys.exit(main())
