"""LoRA Loom's engine: networks, training, tools and generation, usable from a shell and from the web process."""

import logging

# Whoever imports diffusers is told at length when xformers' extensions were built for another torch. Whether they
# can be used is asked, and answered in one line, where somebody wants them.
logging.getLogger("xformers").setLevel(logging.ERROR)
