"""Help pages are compared in English, whatever the locale of who runs the tests."""

import os

os.environ["MMCLI_LANG"] = "en"
