# What the five scripts share; sourced by them with the name of the job and its arguments.
#
#   LONGSHORE   the program [default: the one built in the repository of these scripts, else on the PATH]

if [[ -z "$2" ]]; then
    echo "error: the first argument names the model, e.g. nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16" >&2
    exit 1
fi

# Variables that a cluster keeps in a file. Here they reach the program, whatever way they are set.
set -a
for file in "${SANDBOX_ENV_SETUP:-}" "${MLM_ENV_SETUP:-}"; do
    if [[ -n "$file" ]]; then
        # shellcheck disable=SC1090
        source "$file" || { echo "error: sourcing \`$file\` failed" >&2; exit 1; }
    fi
done
set +a

if [[ -z "${LONGSHORE:-}" ]]; then
    built="$(dirname "${BASH_SOURCE[0]}")/../target/release/longshore"
    if [[ -x "$built" ]]; then LONGSHORE="$built"; else LONGSHORE=longshore; fi
fi
"$LONGSHORE" script "$@" < /dev/null || exit 1
