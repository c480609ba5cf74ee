# shellcheck shell=bash
# The XLA flags of a run that make it fast: `. launch/xla_flags.sh PLATFORM` (tpu | gpu) adds them to what the caller has set.
# (Those that every run must have are set by emjax/__init__.py.)
# Every flag has its reason; a flag without a measured or documented gain does not belong here.
case "${1:?tpu or gpu}" in
tpu)
    # Collectives run beside arithmetic: the gathers of the next layer's weights (fsdp) hide behind this layer's products.
    LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} --xla_tpu_enable_async_collective_fusion=true"
    LIBTPU_INIT_ARGS="$LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
    LIBTPU_INIT_ARGS="$LIBTPU_INIT_ARGS --xla_tpu_overlap_compute_collective_tc=true"
    export LIBTPU_INIT_ARGS
    ;;
gpu)
    # Gathers of weights run beside arithmetic instead of between; nothing to gain on one GPU, nothing to lose.
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
    export XLA_FLAGS
    # A tenth stays for NCCL's buffers and the CUDA context; jax's default of a quarter wastes 14 GB of an H100.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
    ;;
*)
    echo "xla_flags.sh: unknown platform '$1'; choose tpu or gpu" >&2
    return 2
    ;;
esac
