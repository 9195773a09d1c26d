#!/usr/bin/env bash
# The whole comparison, one command: every model on the same folds of the same notes, then the table.
#
#   bash run_all.sh --demo                              # built-in notes, mini encoders, no network: ten to twenty minutes
#   bash run_all.sh --dataset notes.csv --group_column patient                   # 51 runs: days on two cores (--dry-run)
#   bash run_all.sh --dataset notes.csv --group_column patient --tuning frozen   # 21 of them: hours
#
#   --dataset D        as for train.py (default: synthetic)         --models a,b   only these models
#   --heads a,b        only these structures                        --tuning a,b   only these of frozen, lora, full
#   --folds N          cross-validation folds (default: 5)          --jobs N       runs at a time (default: as many
#                                                                                as cores, memory, GPU carry)
#   --output DIR       runs, logs, plan (default: runs)             --report DIR   table and figure (default: report)
#   --train-sizes a,b  for learning curves, each model once for each number of training notes (default: full, which
#                      is all of them): 100,250,500,1000,full
#   --cache_dir D      hidden states and pretrained models (default: features and pretrained in --output)
#   --unlabeled P ...  further text, files or folders, for the models pretrained in-house
#   --price-per-hour R what an hour of the machine costs, in any currency: the report then has prices
#   --average A        of precision, recall and F1 in the report: macro (default), weighted, positive or micro
#   --dry-run          print the plan with the hours it will take, from a short probe of each kind of run, and stop
#                      (with --demo the plan alone)
# All runs share the first GPU (CUDA_VISIBLE_DEVICES chooses it); with ACCELERATE_CONFIG=FILE in the environment each
# starts by that configuration of accelerate.
# Any other argument goes to every train.py, for example --group_column or --per_device_train_batch_size: one that is for
# some models only, as --ensemble, needs --models.
# A run that fails does not stop the others, but an argument that train.py does not know does. What is finished is kept
# when the command is given again (without --overwrite, which begins each run anew).
set -euo pipefail
invoked_from=${PWD}
script=$(realpath -- "${BASH_SOURCE[0]}")

die() { echo "error: $*" >&2; exit 2; }

cd "$(dirname "${script}")"
if [[ ! -f train.py ]]; then cd "${invoked_from}"; fi  # sbatch runs a copy of the script, which lies elsewhere
[[ -f train.py ]] || die "train.py is neither beside ${script} nor in ${invoked_from}: give the command from its folder"

# what exists where the command was given is a path from there; the built-in notes go before a folder of their name
as_seen_from_there() {
  if [[ $1 != /* && $1 != synthetic && $1 != synthetic:* && -e ${invoked_from}/$1 ]]; then echo "${invoked_from}/$1"; else echo "$1"; fi
}

cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)  # these are set below, for each run
# a container sees the cores and the memory of its host, and may use less (control groups, version 2 and 1)
limits=${CGROUP_ROOT:-/sys/fs/cgroup}
if { read -r quota period < "${limits}/cpu.max" ||
  { read -r quota < "${limits}/cpu/cpu.cfs_quota_us" && read -r period < "${limits}/cpu/cpu.cfs_period_us"; }; } 2> /dev/null &&
  [[ ${quota} =~ ^[0-9]+$ ]]; then
  share=$(((quota + period - 1) / period)) && cores=$((share < cores ? share : cores))
fi
dataset=synthetic folds=5 jobs=auto output=runs report=report demo=false dry_run=false
no_encoder="tfidf tfidf-nb transformer moe-transformer transformer-pretrained moe-transformer-pretrained"
models=${no_encoder// /,},camembert-bio,alibert,drbert
heads=linear,adapter,lightweight,tiny-attention,grn
tunings=frozen,lora,full
sizes=full unlabeled=() of_report=()
known_heads=${heads//,/ } known_tunings=${tunings//,/ } known_models=${models}
stand_ins="camembert-bio:camembert:1 alibert:roberta:2 drbert:camembert:3"  # of --demo: alias, architecture, seed
# The grid compares; `train.py` with the same arguments and folder then adds the model for use to a finished run.
extra=(--keep_model False)
if [[ " $* " == *" --demo "* ]]; then
  # Small enough for minutes on two cores; stand-ins take the place of the encoders that the Hub would give.
  demo=true dataset=synthetic:1000 folds=2 tunings=frozen output=runs-demo report=report-demo
  extra+=(--max_length 160 --num_train_epochs 8 --pretraining_tokens 500000 --min_steps 0)
fi
while (($#)); do
  if [[ $1 == --*=~/* ]]; then set -- "${1%%=*}=${HOME}/${1#*=~/}" "${@:2}"; fi  # which the shell leaves as it is
  if [[ $1 == --*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  if [[ $1 == --* ]]; then name=${1#--}; set -- "--${name//-/_}" "${@:2}"; fi  # --dry-run is --dry_run
  case "$1" in
    --demo) shift; continue ;;
    --dry_run) dry_run=true; shift; continue ;;
    -h | --help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${script}"; exit 0 ;;
    --dataset | --models | --heads | --tuning | --folds | --jobs | --output | --report) ;;
    --train_sizes | --price_per_hour | --average | --cache_dir) ;;
    --unlabeled)
      shift
      [[ $# -gt 0 && $1 != --* ]] || die "--unlabeled needs a value"
      while (($#)) && [[ $1 != --* ]]; do
        [[ -n $1 ]] || die "--unlabeled needs a value"
        unlabeled+=("$(as_seen_from_there "$1")")
        shift
      done
      continue ;;
    --train_size) die "--train_size is for train.py; the grid has --train-sizes" ;;
    --model | --head | --output_dir) die "$1 is for train.py; the grid has --models, --heads and --output" ;;
    *) extra+=("$1"); shift; continue ;;
  esac
  (($# > 1)) && [[ -n $2 ]] || die "$1 needs a value"
  case "$1" in
    --dataset) dataset=$2 ;; --models) models=$2 ;; --heads) heads=$2 ;; --tuning) tunings=$2 ;;
    --folds) folds=$2 ;; --jobs) jobs=$2 ;; --output) output=$2 ;; --report) report=$2 ;;
    --train_sizes) sizes=$2 ;;
    --price_per_hour)
      [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--price-per-hour $2: give what an hour costs, as 0.5"
      of_report+=("$1" "$2") ;;
    --average)
      [[ " macro weighted positive micro " == *" $2 "* ]] || die "--average $2: choose from macro, weighted, positive, micro"
      of_report+=("$1" "$2") ;;
    --cache_dir)
      if [[ $2 == /* ]]; then extra+=(--cache_dir "$2"); else extra+=(--cache_dir "${invoked_from}/$2"); fi ;;
  esac
  shift 2
done
if ((${#unlabeled[@]})); then extra+=(--unlabeled "${unlabeled[@]}"); fi
IFS=, read -ra names <<< "${models}"
chosen=()
for name in "${names[@]}"; do  # "a, b" is a,b; a folder may have blanks in its name
  read -r name <<< "${name}"
  if [[ ${name} ]]; then chosen+=("${name}"); fi
done
models=$(IFS=,; echo "${chosen[*]-}")
heads=${heads//, /,} tunings=${tunings//, /,} sizes=${sizes//, /,}  # "a, b" is a,b
[[ ${jobs} =~ ^(auto|[1-9][0-9]*)$ ]] || die "--jobs ${jobs}: give a number from 1"
for value in ${heads//,/ }; do
  [[ " ${known_heads} " == *" ${value} "* ]] || die "--heads ${value}: choose from ${known_heads// /, }"
done
for value in ${tunings//,/ }; do
  [[ " ${known_tunings} " == *" ${value} "* ]] || die "--tuning ${value}: choose from ${known_tunings// /, }"
done
for value in ${chosen[@]+"${chosen[@]}"}; do  # a slip of the pen would be taken for an encoder on the Hub
  [[ ",${known_models}," != *",${value},"* && ${value} != */* && ! -e ${invoked_from}/${value} ]] || continue
  similar=$(python -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1, 0.85))' \
    "${value}" ${known_models//,/ })
  [[ -z ${similar} ]] || die "--models ${value}: did you mean ${similar}?"
done
for value in ${sizes//,/ }; do
  [[ ${value} =~ ^(full|[1-9][0-9]*)$ ]] || die "--train-sizes ${value}: give numbers of notes, or full"
done
# These paths are as seen from where the command was given; --unlabeled was treated above.
dataset=$(as_seen_from_there "${dataset}")
if [[ ${invoked_from} != "${PWD}" ]]; then
  if [[ ${output} != /* ]]; then output=${invoked_from}/${output}; fi
  if [[ ${report} != /* ]]; then report=${invoked_from}/${report}; fi
  IFS=, read -ra names <<< "${models}"
  for number in "${!names[@]}"; do
    name=${names[number]}
    # the demo's encoders are its own; else a folder goes before the encoder of its name on the Hub
    if ${demo}; then taken=${known_models}; else taken=${no_encoder// /,}; fi
    if [[ ${name} != /* && ",${taken}," != *",${name},"* && -d ${invoked_from}/${name} ]]; then
      names[number]=${invoked_from}/${name}
    fi
  done
  models=$(IFS=,; echo "${names[*]}")
fi

if [[ ${CUDA_VISIBLE_DEVICES-0} == -1 ]]; then export CUDA_VISIBLE_DEVICES=; fi  # another way to say: none
# ---- the plan: one line a run, cheapest first, so that the table fills early --------------------------------------
plan=()
add() {  # model, head, tuning, name of the run: once for each size of the training part
  local size
  for size in ${sizes//,/ }; do
    if [[ ${size} == full ]]; then plan+=("$4"$'\t'"$1"$'\t'"$2"$'\t'"$3"$'\t-')
    else plan+=("$4-n${size}"$'\t'"$1"$'\t'"$2"$'\t'"$3"$'\t'"${size}"); fi
  done
}
has() { [[ ",$2," == *",$1,"* ]]; }
# what a sensible user would try first, then the paper's two small Transformers, then both pretrained in-house
for model in ${no_encoder}; do
  if has "${model}" "${models}"; then add "${model}" - - "${model}"; fi
done
# the paper's encoders with each structure, and `linear` as the control; training more and more of the encoder
for tuning in frozen lora full; do
  has "${tuning}" "${tunings}" || continue
  IFS=, read -ra names <<< "${models}"
  for model in "${names[@]}"; do
    if has "${model}" "${no_encoder// /,}"; then continue; fi
    name=${model%/}
    if [[ -d ${name} ]]; then name=$(basename "${name}"); fi
    for head in ${heads//,/ }; do
      add "${model}" "${head}" "${tuning}" "${name//\//--}-${head}-${tuning}"
    done
  done
done
((${#plan[@]})) || die "nothing to run: --models ${models} --heads ${heads} --tuning ${tunings}"
repeated=$(printf '%s\n' "${plan[@]}" | cut -f 1 | sort | uniq -d | head -n 1)
[[ -z ${repeated} ]] || die "two runs would be in the folder ${repeated}: give each model, head, tuning and size once," \
  "and encoders of different names"

# ---- how many at a time ----------------------------------------------------------------------------------------------
# Several runs of one thread each get more done than one run of several threads: batches are small. A run of a base-size
# encoder that is trained wants 4 GB, all others less.
memory=$(awk '/^MemAvailable/ {print int($2 / 1e6)}' /proc/meminfo)
limit_memory() {  # folder of a control group, its file with the limit, the name of what processes hold there
  local most used
  if read -r most < "$1/$2" && [[ ${most} != max ]]; then
    used=$(sed -n "s/^$3 //p" "$1/memory.stat" || true)  # cached files make way
    most=$(((most - ${used:-0}) / 1000000000)) && memory=$((most < memory ? most : memory))
  fi 2> /dev/null
}
limit_memory_of_groups() {  # their root, how a line on ours begins, then as above
  local group
  group=$(sed -n "s/^$2:://p; s/^[0-9]*:$2://p" "${CGROUP_OF:-/proc/self/cgroup}" 2> /dev/null | head -n 1 || true)
  group=$1${group%/}  # of a job of Slurm far below the root
  while limit_memory "${group}" "${@:3}" && [[ ${group} != "$1" ]]; do group=${group%/*}; done
}
limit_memory_of_groups "${limits}" 0 memory.max anon
limit_memory_of_groups "${limits}/memory" memory memory.limit_in_bytes total_rss
if [[ ${jobs} == auto ]]; then
  jobs=$((memory / 4 < cores ? memory / 4 : cores))
  # A large GPU waits for Python: five runs at a time on an H200 got 3.4 times as much done as one. Each may want 8 GB
  # of it, and three cores (ours).
  gpu=(nvidia-smi --id="${CUDA_VISIBLE_DEVICES-0}" --query-gpu=memory.free --format=csv,noheader,nounits)
  if [[ ${CUDA_VISIBLE_DEVICES-0} ]] && command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
    free=$("${gpu[@]}" 2> /dev/null | head -n 1 || true)  # in MiB
    if [[ ! ${free} =~ ^[0-9]+$ ]]; then free=0; fi  # it does not say: one run
    most=$((free / 8000 < cores / 3 ? free / 8000 : cores / 3))
    jobs=$((jobs < most ? jobs : most))
  fi
  # Cores that no further run wants are threads of the others; of a baseline one thread is all.
  networks=$(printf '%s\n' "${plan[@]}" | cut -f 2 | grep -cvxE 'tfidf(-nb)?' || true)
  most=$((networks > 0 ? networks : ${#plan[@]}))
  jobs=$((jobs < most ? jobs : most))
  jobs=$((jobs > 0 ? jobs : 1))
fi
export OMP_NUM_THREADS=$((cores / jobs > 0 ? cores / jobs : 1)) TOKENIZERS_PARALLELISM=false
export CUDA_DEVICE_ORDER=PCI_BUS_ID  # the numbers that nvidia-smi gives
# one GPU a run; of a variable that is set to nothing, none
gpus=${CUDA_VISIBLE_DEVICES-0} one_gpu=${gpus%%,*}
if [[ -z ${ACCELERATE_CONFIG:-} ]]; then export CUDA_VISIBLE_DEVICES=${one_gpu}; fi
# by a configuration of its own: `accelerate config` may have left one that takes other processes or another GPU
launch=(accelerate launch --quiet --config_file "${output}/logs/accelerate.yaml" --num_processes 1 --num_machines 1
  --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process "${OMP_NUM_THREADS}")
if [[ -n ${ACCELERATE_CONFIG:-} ]]; then
  if [[ ${ACCELERATE_CONFIG} != /* ]]; then ACCELERATE_CONFIG=${invoked_from}/${ACCELERATE_CONFIG}; fi
  launch=(accelerate launch --config_file "${ACCELERATE_CONFIG}")
  # of runs on several GPUs that start together each takes a free port, not all the same
  if ((jobs > 1)) && grep -qE "^distributed_type: *['\"]?MULTI_(GPU|NPU|XPU|MLU)" "${ACCELERATE_CONFIG}" 2> /dev/null &&
    ! grep -qE '^num_machines: *([2-9]|1[0-9])' "${ACCELERATE_CONFIG}"; then
    launch+=(--main_process_port 0)
  fi
  # so that the pass over the notes and the dry run are on the device of the runs
  if grep -qiE '^use_cpu: *true' "${ACCELERATE_CONFIG}" 2> /dev/null; then one_gpu="" && export ACCELERATE_USE_CPU=true; fi
fi
echo "${#plan[@]} runs on ${dataset} (folds: ${folds}, unless the notes have splits), ${jobs} at a time" \
  "(threads each: ${OMP_NUM_THREADS} of ${cores}, ${memory} GB free), into ${output}/"
if ${dry_run}; then
  if ${demo}; then printf '%s\n' "${plan[@]}"; exit 0; fi  # its encoders are not made yet: nothing to probe
  # in the place of this shell, so that a signal reaches it
  CUDA_VISIBLE_DEVICES=${one_gpu} exec python estimate.py --jobs "${jobs}" --estimate "${output}/estimate.json" \
    --dataset "${dataset}" --folds "${folds}" "${extra[@]}" < <(printf '%s\n' "${plan[@]}")
fi
for folder in "${output}" "${report}"; do  # known before the work is done
  mkdir -p "${folder}" 2> /dev/null && [[ -w ${folder} ]] || die "${folder}: cannot be made or written; choose another"
done
mkdir -p "${output}/logs"
printf '%s\n' "${plan[@]}" > "${output}/plan.tsv"
printf '%s\n' "compute_environment: LOCAL_MACHINE" "distributed_type: 'NO'" > "${output}/logs/accelerate.yaml"

set -m  # each run is a process group of its own, which can be stopped as a whole: else Ctrl-C would leave runs behind
signal_runs() {  # signal, process groups; true if one of them is there
  local group found=false
  for group in "${@:2}"; do if kill -s "$1" -- "-${group}" 2> /dev/null; then found=true; fi; done
  ${found}
}
stop() {
  trap '' INT TERM HUP
  local groups
  mapfile -t groups < <(jobs -rp)
  signal_runs TERM "${groups[@]}" || true
  for _ in {1..50}; do signal_runs 0 "${groups[@]}" || break; sleep 0.1; done
  signal_runs KILL "${groups[@]}" || true  # what hangs
  if [[ " ${extra[*]} " == *" --overwrite "* ]]; then
    echo "interrupted: given again without --overwrite, the same command goes on from here; runs that had not begun" \
      "then keep what there was of them before" >&2
  else
    echo "interrupted: given again, the same command goes on from here" >&2
  fi
  exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP  # of a terminal that is closed; not under nohup

if ${demo}; then
  echo "making three mini encoders, stand-ins for the paper's (logs in ${output}/logs)"
  # other seeds of the generator: no note of the corpus is in the pretraining texts
  for spec in ${stand_ins}; do
    IFS=: read -r alias architecture seed <<< "${spec}"
    [[ ! -f ${output}/stand-ins/${alias}/pretrain.json ]] || continue
    python pretrain.py --architecture "${architecture}" --tokenizer unigram --unlabeled "synthetic:1500:${seed}" \
      --seed "${seed}" --stand_in_for "${alias}" --max_steps 700 --max_length 160 \
      --per_device_train_batch_size 2 --output_dir "${output}/stand-ins/${alias}" \
      < /dev/null > "${output}/logs/pretrain-${alias}.log" 2>&1 || echo "  failed: ${output}/logs/pretrain-${alias}.log" &
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
  done
  wait
fi

# ---- the runs ------------------------------------------------------------------------------------------------------
started=${SECONDS}
arguments=()
set_arguments() {  # of train.py, from a line of the plan
  local id=$1 model=$2 head=$3 tuning=$4 size=$5
  arguments=(--model "${model}" --dataset "${dataset}" --folds "${folds}" --output_dir "${output}/${id}")
  if ${demo} && [[ " ${stand_ins}" == *" ${model}:"* ]]; then arguments[1]="${output}/stand-ins/${model}"; fi
  if [[ ${head} != - ]]; then arguments+=(--head "${head}" --tuning "${tuning}"); fi
  if [[ ${size} != - ]]; then arguments+=(--train_size "${size}"); fi
  if [[ ${tuning} == frozen ]]; then arguments+=(--cache_dir "${output}/features"); fi
  if [[ ${model} =~ ^(moe-)?transformer-pretrained$ ]]; then arguments+=(--cache_dir "${output}/pretrained"); fi
}
run() {
  local number=$1 id=$2 began=${SECONDS} log="${output}/logs/$2.log" earlier=0
  set_arguments "${@:2}"
  if [[ -s ${log} ]]; then  # what an earlier start printed stays
    echo "---- started again" >> "${log}"
    earlier=$(wc -c < "${log}")
  fi
  if "${launch[@]}" train.py "${arguments[@]}" ${extra[@]+"${extra[@]}"} < /dev/null >> "${log}" 2>&1; then
    local left=$(((SECONDS - started) * (${#plan[@]} - number) / number / 60))
    echo "[${number}/${#plan[@]}] ${id}: done in $((SECONDS - began)) s; at this rate ${left} min left"
  else
    local why
    why=$(tail -c "+$((earlier + 1))" "${log}" | grep -a '^error: ' | tail -n 1 || true)
    echo "[${number}/${#plan[@]}] ${id}: FAILED: ${why:-see ${log}}"
    echo "${id}: ${why:-see ${log}}" >> "${failures}"
  fi
}
failures=$(mktemp "${output}/logs/failures-XXXXXX")  # of this start: another grid may run in the folder
trap 'rm -f "${failures}"' EXIT
is_finished() {  # by its results, whether a run needs nothing more
  local results expected
  mapfile -t results < <(find "${output}/$1" -name result.json 2> /dev/null)
  ((${#results[@]})) && [[ " ${extra[*]} " != *" --overwrite "* ]] || return
  expected=$(sed -n 's/^ *"num_\(folds\|seeds\)": \([0-9]*\),$/\2/p' "${results[0]}" | paste -s -d '*')
  [[ ${expected} ]] && ((${#results[@]} >= expected))
}
compute_features() {  # of every frozen encoder with a run to do, one after the other, each with all cores
  local line id model head tuning size done=
  for line in "${plan[@]}"; do
    IFS=$'\t' read -r id model head tuning size <<< "${line}"
    [[ ${tuning} == frozen && ${model} != "${done}" ]] && ! is_finished "${id}" || continue
    done=${model}
    set_arguments "${id}" "${model}" "${head}" "${tuning}" "${size}"
    OMP_NUM_THREADS=${cores} CUDA_VISIBLE_DEVICES=${one_gpu} python train.py "${arguments[@]}" --features_only \
      ${extra[@]+"${extra[@]}"} < /dev/null > "${output}/logs/features-${id%%-"${head}"-*}.log" 2>&1 || true
  done
}
stop_if_misspelt() {  # an argument that train.py does not know is wrong in every run
  local why
  why=$(sed -n 's/^[^:]*: error: \(.*--help lists all.*\)$/\1/p' "${failures}" 2> /dev/null | head -n 1 || true)
  [[ -z ${why} ]] || { wait; die "${why}"; }
}
number=0 have_features=false
for line in "${plan[@]}"; do
  IFS=$'\t' read -r id model head tuning size <<< "${line}"
  number=$((number + 1))
  if [[ ${tuning} == frozen && ${jobs} -gt 1 ]] && ! ${have_features}; then
    wait  # the heads then train side by side; where a pass fails, each of them says why
    compute_features &
    wait
    have_features=true
  fi
  run "${number}" "${id}" "${model}" "${head}" "${tuning}" "${size}" &
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
  stop_if_misspelt
done
wait
stop_if_misspelt

# ---- the table -----------------------------------------------------------------------------------------------------
status=0 table=none
# in the background: bash keeps a signal waiting for the end of what it runs itself
python evaluate.py "${output}" --output "${report}" ${of_report[@]+"${of_report[@]}"} &
wait $! || status=1
if [[ ${report}/results.md -nt ${output}/plan.tsv ]]; then table=${report}/results.md; fi
if [[ -s ${failures} ]]; then
  echo "failed:"
  sed 's/^/  /' "${failures}"
  if grep -q -e '--output_dir, or --overwrite' "${failures}"; then
    echo "of these the table shows at most what was there before; for the grid it is another --output, or --overwrite," \
      "which trains all of it again"
  fi
  status=1
fi
echo "table: ${table}   runs: ${output}/   $(((SECONDS - started) / 60)) min"
exit "${status}"
