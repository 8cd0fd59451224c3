"""Why vLLM does not start: the messages of releases 0.6.3 to 0.33, what each means, and the way out.

The order is the priority: what is particular stands before what is general. Each message was produced by a real server
(`tests/data/startup/*.log`) or is quoted from a release's source (`tests/data/startup/from-source.yaml`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Failure(StrEnum):
    """What kept a server from starting, or ended it."""

    UNKNOWN_ARGUMENT = "UnknownArgument"
    INVALID_ARGUMENT = "InvalidArgument"
    METHOD_UNKNOWN = "MethodUnknown"
    METHOD_UNSUPPORTED = "MethodUnsupported"
    DEPENDENCY_MISSING = "DependencyMissing"
    TOKENS_OUT_OF_RANGE = "TokensOutOfRange"
    SCHEDULE_INVALID = "ScheduleInvalid"
    VOCABULARIES_DIFFER = "VocabulariesDiffer"
    MODEL_MISSING = "ModelMissing"
    MODEL_GATED = "ModelGated"
    HUB_UNREACHABLE = "HubUnreachable"
    MODEL_UNUSABLE = "ModelUnusable"
    CONTEXT_TOO_LONG = "ContextTooLong"
    TENSOR_PARALLEL = "TensorParallel"
    PIPELINE_PARALLEL = "PipelineParallel"
    BATCH_BUDGET = "BatchBudget"
    ASYNC_SCHEDULING = "AsyncScheduling"
    FEATURE_CONFLICT = "FeatureConflict"
    KV_CACHE_TOO_SMALL = "KvCacheTooSmall"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    DISK_FULL = "DiskFull"
    PORT_IN_USE = "PortInUse"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    CONTAINER_NOT_CREATED = "ContainerNotCreated"
    KILLED = "Killed"
    UNRECOGNISED = "Unrecognised"


@dataclass(frozen=True)
class Signature:
    """One message. Cause and cure may name the pattern's groups."""

    failure: Failure
    pattern: re.Pattern[str]
    cause: str
    cure: str
    beside: re.Pattern[str] | None = None
    """What must be in the log as well."""

    def match(self, text: str) -> re.Match[str] | None:
        """The message in a log."""
        return self.pattern.search(text) if self.beside is None or self.beside.search(text) else None


def _of(failure: Failure, pattern: str, cause: str, cure: str, beside: str | None = None) -> Signature:
    # Logs hold anything: a repetition that a message may begin with is bounded, or a long line would take forever.
    return Signature(failure, re.compile(pattern, re.DOTALL), cause, cure, re.compile(beside) if beside else None)


_IN_SPECULATIVE_CONFIG = r"validation errors? for SpeculativeConfig\s+"
_NOT_FOUND = r"Invalid repository ID or local directory specified: '(?P<model>[^']{1,300})'"
_NAME_THE_MODEL = "correct its name (of a draft: draftModel.model of the profile), or mount it into the container"
_LESS_MEMORY = "a smaller or quantised draft, a shorter --max-model-len, or n-gram, which takes no memory"

SIGNATURES: tuple[Signature, ...] = (
    # --- the command line ---
    _of(
        Failure.UNKNOWN_ARGUMENT,
        r"error: unrecognized arguments: (?P<argument>--?[\w.-]+)",
        "this version of vLLM does not know the argument {argument}",
        "remove it from the profile's args or from the container; spec.vllmVersion must be what the image really holds",
    ),
    _of(
        Failure.UNKNOWN_ARGUMENT,
        _IN_SPECULATIVE_CONFIG + r"(?P<key>\w+)\s+(?:Unexpected keyword argument|Extra inputs are not permitted)",
        "this version of vLLM does not know the key {key} in --speculative-config",
        "remove it from the profile's args; spec.vllmVersion must be what the image really holds",
    ),
    _of(
        Failure.UNKNOWN_ARGUMENT,
        r"SpeculativeConfig\S* got an unexpected keyword argument '(?P<key>\w+)'",
        "this version of vLLM does not know the key {key} in --speculative-config",
        "remove it from the profile's args; spec.vllmVersion must be what the image really holds",
    ),
    _of(
        Failure.INVALID_ARGUMENT,
        r"error: argument (?P<argument>[^:\s]+): ",
        "the argument {argument} has a value that vLLM does not take",
        "correct it in the profile's args or in the container",
    ),
    _of(
        Failure.INVALID_ARGUMENT,
        r"(?P<flag>--spec-\w+) and --speculative-config\['(?P<key>\w+)'\] are mutually exclusive",
        "{flag} and {key} in --speculative-config say the same thing twice",
        "remove {flag} from the container's arguments",
    ),
    _of(
        Failure.INVALID_ARGUMENT,
        r"prompt_lookup_min=(?P<low>\d+) must be <= prompt_lookup_max=(?P<high>\d+)",
        "the shortest n-gram ({low}) is longer than the longest ({high})",
        "ngram.promptLookupMin of the profile must not exceed ngram.promptLookupMax",
    ),
    _of(
        Failure.INVALID_ARGUMENT,
        r"Expect the batch size threshold of disabling speculative decoding is > 1",
        "vLLM takes no batch-size threshold below 2",
        "use the profile disabled in place of a threshold of 1",
    ),
    # --- the method ---
    _of(
        Failure.METHOD_UNKNOWN,
        _IN_SPECULATIVE_CONFIG + r"method\s+Input should be .{0,4000}?input_value='(?P<method>[^']*)'",
        "this version of vLLM has no speculative method {method}",
        "use a method that the version has, or another version (medusa and mlp_speculator ended with 0.32)",
    ),
    _of(
        Failure.METHOD_UNSUPPORTED,
        r"[Dd]raft model (?:speculative decoding )?is not\s+supported yet",
        "this version of vLLM cannot speculate with a draft model (0.10 to 0.14 cannot)",
        "use n-gram, or vLLM 0.15 or newer",
    ),
    _of(
        Failure.METHOD_UNSUPPORTED,
        r"Unsupported speculative method: '(?P<method>[^']*)'",
        "this version of vLLM cannot run the speculative method {method} with this draft",
        "use a method that fits the draft model's type",
    ),
    _of(
        Failure.METHOD_UNSUPPORTED,
        r"num_speculative_tokens was provided (?:but )?without\s+speculative[ _]model",
        "the speculative configuration names no draft model",
        "set draftModel.model of the profile",
    ),
    _of(
        Failure.DEPENDENCY_MISSING,
        r"Arctic Inference is required for suffix decoding",
        "suffix decoding takes the package arctic-inference, which the image does not have",
        "install arctic-inference into the image, or use n-gram",
    ),
    # --- K and its schedule ---
    _of(
        Failure.TOKENS_OUT_OF_RANGE,
        _IN_SPECULATIVE_CONFIG + r"num_speculative_tokens\s+Input should be .{0,200}?input_value=(?P<k>[^,\]]+)",
        "vLLM takes no num_speculative_tokens of {k}",
        "numSpeculativeTokens of the profile must be a whole number of at least 1",
    ),
    _of(
        Failure.TOKENS_OUT_OF_RANGE,
        r"Expected num_speculative_tokens to be greater than zero \((?P<k>-?\d+)\)",
        "vLLM takes no num_speculative_tokens of {k}",
        "numSpeculativeTokens of the profile must be a whole number of at least 1",
    ),
    _of(
        Failure.TOKENS_OUT_OF_RANGE,
        r"num_speculative_tokens must be provided with\s+speculative[ _]model",
        "the speculative configuration lacks num_speculative_tokens",
        "set numSpeculativeTokens of the profile",
    ),
    _of(
        Failure.TOKENS_OUT_OF_RANGE,
        r"supports a maximum of num_speculative_tokens=(?P<most>\d+), but num_speculative_tokens=(?P<k>\d+)",
        "the draft was made for {most} tokens a step at most, not for {k}",
        "set numSpeculativeTokens of the profile to {most} or less",
    ),
    _of(
        Failure.TOKENS_OUT_OF_RANGE,
        r"num_speculative_tokens:?\s?(?P<k>\d+) must be divisible by n_predict=(?P<divisor>\d+)",
        "the draft makes {divisor} tokens at a time, and {k} is no multiple of that",
        "set numSpeculativeTokens of the profile to a multiple of {divisor}",
    ),
    _of(
        Failure.SCHEDULE_INVALID,
        r"The first batch-size range must start at 1|Batch-size range[s ]|num_speculative_tokens_per_batch_size"
        r"(?:\.\d+)*\s+(?:must|values must|entry must|Field required|Input should)",
        "vLLM refuses num_speculative_tokens_per_batch_size",
        "ranges [first, last, K] must begin at 1 and not overlap",
    ),
    # --- the models ---
    _of(
        Failure.VOCABULARIES_DIFFER,
        r"Target model vocab_size=(?P<target>\d+)\. Draft model vocab_size=(?P<draft>\d+)",
        "the draft's vocabulary ({draft}) differs from the target's ({target})",
        "use a draft of the same family as the target",
    ),
    _of(
        Failure.VOCABULARIES_DIFFER,
        r"assert all\(vocab_sizes\[0\] == vocab_size",
        "the draft's vocabulary differs from the target's",
        "use a draft of the same family as the target",
    ),
    _of(
        Failure.MODEL_GATED,
        r"Access to model (?P<model>\S{1,200}) is restricted",
        "the model {model} is gated, and the container has no access to it",
        "accept its terms, and give the container a token (HF_TOKEN) that may read it",
    ),
    _of(
        Failure.MODEL_GATED,
        r"You are trying to access a gated repo|Cannot access gated repo",
        "the model is gated, and the container has no access to it",
        "accept its terms, and give the container a token (HF_TOKEN) that may read it",
    ),
    _of(
        Failure.MODEL_MISSING,
        r"Repository Not Found for url: https?://[^/\s]{1,200}/(?:api/models/)?(?P<model>[^/\s]{1,100}/[^/\s]{1,100})/",
        "there is no model {model} on the hub, or it is private and the container has no token",
        "correct draftModel.model of the profile, or give the container a token (HF_TOKEN) that may read it",
    ),
    _of(
        Failure.MODEL_MISSING,
        r"(?<![^\s'\"])(?P<model>[^\s'\"]{1,200}) is not a local folder and is not a valid model identifier",
        "there is no model {model} on the hub, or it is private and the container has no token",
        "correct draftModel.model of the profile, or give the container a token (HF_TOKEN) that may read it",
    ),
    _of(
        Failure.HUB_UNREACHABLE,
        _NOT_FOUND,
        "the hub cannot be reached, and the model {model} is not in the container's cache",
        "open the way to the hub, or mount the model and name its path",
        beside=r"Server disconnected|[Mm]ax retries exceeded|Failed to establish a new connection|ConnectError"
        r"|[Nn]ame resolution|outgoing traffic has been disabled|OfflineModeIsEnabled|timed out",
    ),
    _of(
        Failure.HUB_UNREACHABLE,
        r"We couldn't connect to '[^']*' to load (?:the|this) file|outgoing traffic has been disabled",
        "the hub cannot be reached, and the model is not in the container's cache",
        "open the way to the hub, or mount the model and name its path",
    ),
    _of(
        Failure.MODEL_MISSING,
        r"Repo id must be in the form[^\n]{0,200}?: '(?P<model>/[^']+)'",
        "there is no model at {model} in the container",
        _NAME_THE_MODEL,
    ),
    _of(
        Failure.MODEL_MISSING,
        _NOT_FOUND,
        "there is no model {model}, or it has no config.json",
        _NAME_THE_MODEL,
    ),
    _of(
        Failure.MODEL_MISSING,
        r"Cannot find any model weights with `(?P<model>[^`]+)`",
        "the model {model} has no weights",
        "complete the download or the volume that it comes from",
    ),
    _of(
        Failure.MODEL_UNUSABLE,
        r"SafetensorError: (?P<why>[^\n]{1,80})",
        "a file of the model's weights is damaged ({why})",
        "download it anew: a copy was probably cut short",
    ),
    _of(
        Failure.MODEL_UNUSABLE,
        r"Model architectures \['(?P<name>[^']+)'[^\]]*\] (?:are not supported for now|failed to be inspected)",
        "this version of vLLM cannot run a model of architecture {name}",
        "use another draft, or a newer vLLM",
    ),
    _of(
        Failure.MODEL_UNUSABLE,
        r"has model type `(?P<name>[^`]+)` but Transformers does not recognize this architecture",
        "the image's Transformers does not know models of type {name}",
        "use another draft, or a newer image",
    ),
    _of(
        Failure.MODEL_UNUSABLE,
        r"The repository \S{1,300} contains custom code which must be executed|trust_remote_code=True",
        "the model brings code of its own, which vLLM does not run unasked",
        "add --trust-remote-code if you trust it, or use another draft",
    ),
    _of(
        Failure.MODEL_UNUSABLE,
        r"Cannot find the config file for (?P<method>\w+)",
        "the model is not quantised with {method}",
        "correct draftModel.quantization of the profile",
    ),
    _of(
        Failure.MODEL_UNUSABLE,
        r"There is no module or parameter named '(?P<name>[^']+)' in (?P<architecture>\w+)",
        "the weights do not fit the method: {architecture} has no {name}",
        "use a draft that was made for this method and this target",
    ),
    _of(
        Failure.CONTEXT_TOO_LONG,
        r"max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len"
        r" \(\D*(?P<most>\d+)",
        "a context of {asked} tokens was asked for, and a model is made for {most}",
        "lower max_model_len, of the draft in its profile, of the target in the container",
    ),
    _of(
        Failure.CONTEXT_TOO_LONG,
        r"speculative_max_model_len=(?P<asked>\d+) cannot be larger than (?:draft|target)_max_model_len=(?P<most>\d+)",
        "the draft's max_model_len ({asked}) is more than a model is made for ({most})",
        "lower max_model_len in the profile's args",
    ),
    # --- what goes together ---
    _of(
        Failure.TENSOR_PARALLEL,
        r"speculative_draft_tensor_parallel_size=(?P<draft>\d+) cannot be other value than 1",
        "the draft was to be split over {draft} GPUs, which is neither 1 nor as many as the target has",
        "set draftModel.tensorParallelSize of the profile to 1 or to the target's",
    ),
    _of(
        Failure.TENSOR_PARALLEL,
        r"'draft_tensor_parallel_size' and 'tensor_parallel_size' must be the same\. Got (?P<draft>\d+) and"
        r" (?P<target>\d+)",
        "this version of vLLM takes a draft model only on as many GPUs as the target: {target}, not {draft}",
        "set draftModel.tensorParallelSize of the profile to {target}",
    ),
    _of(
        Failure.TENSOR_PARALLEL,
        r"'tensor_parallel_size' is not a valid argument in the speculative_config",
        "tensor_parallel_size is no key of --speculative-config",
        "set draftModel.tensorParallelSize of the profile in its place",
    ),
    _of(
        Failure.TENSOR_PARALLEL,
        r"attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<size>\d+)\)",
        "a model with {heads} attention heads cannot be split over {size} GPUs",
        "use a number of GPUs that divides it; for the draft draftModel.tensorParallelSize",
    ),
    _of(
        Failure.PIPELINE_PARALLEL,
        r"has no attribute 'drafter'|with pipeline parallel is not supported",
        "this version of vLLM cannot run this method with pipeline parallelism",
        "use tensor parallelism in its place, or leave speculation off",
    ),
    _of(
        Failure.BATCH_BUDGET,
        r"Consider increasing max_num_batched_tokens or\s+decreasing num_speculative_tokens",
        "with LoRA, max_num_batched_tokens must be at least max_num_seqs x (numSpeculativeTokens + 1)",
        "raise --max-num-batched-tokens in the profile's args, or lower numSpeculativeTokens",
    ),
    _of(
        Failure.ASYNC_SCHEDULING,
        r"async scheduling is only supported\s+with|speculative decoding is not supported with\s+async scheduling",
        "this version of vLLM cannot run this method with asynchronous scheduling",
        "remove --async-scheduling from the container's arguments: vLLM chooses it by itself where it can",
    ),
    _of(
        Failure.FEATURE_CONFLICT,
        r"Custom logits processors are not supported when speculative decoding is enabled",
        "custom logits processors and speculative decoding exclude each other",
        "remove --logits-processors, or leave speculation off",
    ),
    _of(
        Failure.FEATURE_CONFLICT,
        r"--per-request-spec-decode-metrics requires speculative decoding",
        "--per-request-spec-decode-metrics takes speculation, so it cannot stay where speculation is off",
        "move it from the container's arguments into the args of the profiles that speculate",
    ),
    _of(
        Failure.FEATURE_CONFLICT,
        r"Speculative decoding is not supported with\s+multi-step",
        "multi-step scheduling and speculative decoding exclude each other",
        "remove --num-scheduler-steps, or leave speculation off",
    ),
    # --- room ---
    _of(
        Failure.GPU_OUT_OF_MEMORY,
        r"(?:CUDA|HIP|XPU) out of memory\. Tried to allocate (?P<asked>[\d.]+ \w+)",
        "the GPU has no room for another {asked}",
        _LESS_MEMORY,
    ),
    _of(
        Failure.GPU_OUT_OF_MEMORY,
        r"CUDA out of memory occurred when warming up",
        "the GPU has no room for a full batch",
        "lower --max-num-seqs or --gpu-memory-utilization in the profile's args",
    ),
    _of(
        Failure.GPU_OUT_OF_MEMORY,
        r"Free memory on device (?:\S+ )?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than",
        "only {free} of the GPU's {total} GiB are free",
        "is another process on that GPU, or the old pod not gone yet? Else lower --gpu-memory-utilization",
    ),
    _of(
        Failure.KV_CACHE_TOO_SMALL,
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the"
        r" available KV cache memory \((?P<available>[\d.]+) GiB\)",
        "one request of {length} tokens takes {needed} GiB of KV cache, and {available} GiB are left",
        _LESS_MEMORY,
    ),
    _of(
        Failure.KV_CACHE_TOO_SMALL,
        r"max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens that can be stored in KV cache"
        r" \((?P<most>\d+)\)",
        "one request of {length} tokens may come, and the KV cache has room for {most}",
        _LESS_MEMORY,
    ),
    _of(
        Failure.KV_CACHE_TOO_SMALL,
        r"No available memory for the cache blocks",
        "weights and drafts leave no room for a KV cache",
        _LESS_MEMORY,
    ),
    _of(
        Failure.HOST_OUT_OF_MEMORY,
        r"on kv cache allocation is less than requested memory for kv \((?P<asked>[\d.]+) GiB\)",
        "the machine has no room for a KV cache of {asked} GiB",
        "lower --kv-cache-memory-bytes or VLLM_CPU_KVCACHE_SPACE",
    ),
    _of(
        Failure.HOST_OUT_OF_MEMORY,
        r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory|^MemoryError",
        "the machine has no memory left",
        "raise the container's memory limit, or use a smaller draft",
    ),
    _of(
        Failure.DISK_FULL,
        r"No space left on device",
        "a volume of the container is full",
        "give the model's cache, or /dev/shm, more room",
    ),
    _of(
        Failure.PORT_IN_USE,
        r"\[Errno 98\] [^\n]{0,200}?[Aa]ddress already in use",
        "somebody else has the server's port",
        "use a port of its own; with hostNetwork two pods cannot share a node",
    ),
    _of(
        Failure.HOST_OUT_OF_MEMORY,
        r"Failed core proc\(s\): \{[^}]*: -9\}",
        "the engine's process was killed while it started, as the kernel does when memory runs out",
        "raise the container's memory limit, or use a smaller draft",
    ),
)
