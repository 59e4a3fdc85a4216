#!/usr/bin/env bash
# In the place of Megatron-LM's examples/post_training/modelopt/quantize.sh; docs/migrating.md says what is the same.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" quantize "$@"
