#!/usr/bin/env bash
# Live upgrades between the current tree and other programs, there and back, with clients that may not notice:
# - the commits named in tests/compatibility/commits, built from this repository's own history;
# - the current tree with a setting, a counter, messages, fields of the table and of saved connections added
#   (tests/compatibility/grown.patch).
# Programs are kept in target/compatibility, so that each commit is built once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

place=$PWD/target/compatibility
commits=$(awk 'NF && !/^#/ { print $1 }' tests/compatibility/commits)
mkdir -p "$place"
if [ ! -d "$place/build" ] && [ -d target/debug/deps ]; then
    # What others depend on is the same, and takes the longest to build.
    mkdir -p "$place/build/debug"
    cp -a target/debug/.fingerprint target/debug/build target/debug/deps "$place/build/debug/"
fi

# Builds the tree in $1 as $2. Not optimized: that is what takes long. Its files must be newer than what was built of others in the
# same place (tar -m), or cargo takes that for theirs.
build() {
    local cargo=(env CARGO_TARGET_DIR="$place/build" CARGO_PROFILE_DEV_OPT_LEVEL=0
        cargo build --manifest-path "$1/Cargo.toml" --locked -q -p holdfast --bin holdfast)
    "${cargo[@]}" --offline 2> "$place/log" || "${cargo[@]}"
    install "$place/build/debug/holdfast" "$2"
}

[ "$(git rev-parse --is-shallow-repository)" = false ] || { echo "compatibility: this clone has no history: git fetch --unshallow"; exit 1; }
for commit in $commits; do
    program=$place/$commit
    [ -x "$program" ] && continue
    git cat-file -e "$commit^{commit}" || { echo "compatibility: commit $commit is not in this repository"; exit 1; }
    rm -rf "$place/source" && mkdir "$place/source"
    git archive "$commit" | tar -x -m -C "$place/source"
    build "$place/source" "$program"
done

rm -rf "$place/source" && mkdir "$place/source"
git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c --ignore-failed-read 2> /dev/null | tar -x -m -C "$place/source"
patch -s -F0 -d "$place/source" -p1 --no-backup-if-mismatch < tests/compatibility/grown.patch \
    || { echo "compatibility: tests/compatibility/grown.patch no longer applies: make the same additions again"; exit 1; }
build "$place/source" "$place/grown"

HOLDFAST_COMPATIBILITY=$place cargo test --locked -q -p holdfast-tests --test compatibility -- --ignored --nocapture
