#!/bin/sh
# Azurite, which plays Azure's blob storage, in a folder of its own below the virtual environment of the Python given.
# Where that cannot be done it is said, and no error: the tests that need it say so as well.
#   install_azurite.sh PYTHON
set -eu
version=3.35.0 # later ones need a Node.js that Debian 12 does not have
prefix=$("$1" -c 'import sys; print(sys.prefix)')
folder=$prefix/azurite
grep -qs "\"version\": \"$version\"" "$folder/node_modules/azurite/package.json" && exit 0
if ! command -v npm >/dev/null; then
    echo "npm is not installed, and so Azurite is not: the tests of Azure's datastore need it." >&2
    exit 0
fi
rm -rf "$folder" "$folder.part"
# Nothing of it needs to be built: its native parts are for databases that the tests do not use. Where npm cannot reach
# its registry it would try each of some hundred packages again and again.
if timeout 300 npm install --prefix "$folder.part" --fetch-retries 1 --no-save --no-audit --no-fund --ignore-scripts \
    --loglevel error "azurite@$version" >/dev/null; then
    mv "$folder.part" "$folder"
else
    rm -rf "$folder.part"
    echo "Azurite $version could not be installed by npm: the tests of Azure's datastore need it." >&2
fi
