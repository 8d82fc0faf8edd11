"""What the server of `tests.netns.program` imports before the first run: all that the program may need in a namespace."""

# ruff: noqa: F401 - all of these are for what they leave in `sys.modules`

from contextlib import suppress

import istio_init.cli.apply
import istio_init.cli.clean
import istio_init.cli.istio_iptables
import istio_init.cli.main
import istio_init.rules.kernel.engine
import istio_init.rules.kernel.libiptc
import istio_init.rules.kernel.nft
import istio_init.rules.kernel.restore
import istio_init.rules.kernel.surroundings
import istio_init.rules.layouts.istio_1_0
import istio_init.rules.layouts.istio_1_30
import istio_init.rules.render.iptables
import istio_init.rules.validation
import tests.netns.program
from istio_init.core.errors import Unsupported
from istio_init.rules.kernel import iptc_library

with suppress(Unsupported):  # tests of the backend libiptc will tell
    iptc_library.load()
