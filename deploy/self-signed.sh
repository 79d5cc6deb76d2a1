#!/bin/sh
# Make a self-signed certificate, to try nginx.conf with. Nobody trusts it but whom you give it to:
#
#   deploy/self-signed.sh FOLDER [NAME ...]                NAME: host name or address; by default localhost
#   curl --cacert FOLDER/fullchain.pem https://localhost/readyz
#   SSL_CERT_FILE=FOLDER/fullchain.pem python client.py    the openai client, and whatever else asks OpenSSL
#
# It is valid for 30 days. No file is overwritten.

set -eu

if [ $# -eq 0 ]; then
    echo "usage: $0 FOLDER [NAME ...]" >&2
    exit 2
fi
certificate=$1/fullchain.pem
key=$1/privkey.pem
mkdir -p "$1"
for file in "$certificate" "$key"; do
    if [ -e "$file" ] || [ -L "$file" ]; then
        echo "$0: $file is there already" >&2
        exit 1
    fi
done

shift
[ $# -gt 0 ] || set -- localhost 127.0.0.1 ::1
names=
for name in "$@"; do
    case $name in
        "" | *[!A-Za-z0-9.:*-]*)
            echo "$0: neither a host name nor an address: $name" >&2
            exit 2
            ;;
        *:*) names="$names,IP:$name" ;;
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
    esac
done
names=${names#,}

# The key is for its owner alone: nginx reads it as root, before its workers become another user. And it is no
# authority: whoever trusts this certificate trusts no other that was signed with it.
umask 077
if ! said=$(
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 30 -subj "/CN=self-signed" \
        -addext "subjectAltName=$names" -addext "basicConstraints=critical,CA:FALSE" \
        -addext "keyUsage=critical,digitalSignature" -addext "extendedKeyUsage=serverAuth" \
        -keyout "$key" -out "$certificate" 2>&1
); then
    echo "$said" >&2
    exit 1
fi
chmod 644 "$certificate"
echo "$certificate, $key: $names"
