# shellcheck shell=bash
# Performance flags for XLA: `. launch/xla_flags.sh PLATFORM` (tpu | gpu) adds them to the caller's
# flags. emjax/__init__.py sets the flags that every run must have. Every flag has a stated reason;
# a flag without a measured or documented gain does not belong here.
case "${1:?tpu or gpu}" in
tpu)
    # Overlap collectives with compute: this layer's matrix products hide the gathers of the next
    # layer's weights (fsdp).
    LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} --xla_tpu_enable_async_collective_fusion=true"
    LIBTPU_INIT_ARGS="$LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
    LIBTPU_INIT_ARGS="$LIBTPU_INIT_ARGS --xla_tpu_overlap_compute_collective_tc=true"
    export LIBTPU_INIT_ARGS
    ;;
gpu)
    # Overlap weight gathers with compute; this has no effect on one GPU.
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
    export XLA_FLAGS
    # Leave a tenth of the memory for NCCL's buffers and the CUDA context; jax's default, a quarter,
    # wastes 14 GB of an H100.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
    ;;
*)
    echo "xla_flags.sh: unknown platform '$1'; choose tpu or gpu" >&2
    return 2
    ;;
esac
