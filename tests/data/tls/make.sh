#!/bin/sh
# Makes the certificates anew. The authority's key is thrown away; the others are public and worth nothing.
set -eu
cd "$(dirname "$0")"
days=36500
key() { openssl ecparam -name prime256v1 -genkey -noout 2>/dev/null | openssl pkcs8 -topk8 -nocrypt -out "$1"; }
signed() { # NAME SUBJECT EXTENSIONS
    key "$1.key"
    openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    printf '%b' "$3" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -days $days -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.ext"
}
key ca.key
openssl req -x509 -new -key ca.key -subj '/CN=bpfman-hook test authority' -days $days -out ca.pem \
    -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign
signed server '/CN=bpfman-hook test registry' \
    'subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.test\nextendedKeyUsage=serverAuth\n'
signed client '/CN=bpfman-hook test client' 'extendedKeyUsage=clientAuth\n'
rm ca.key
key stranger.key
openssl req -x509 -new -key stranger.key -subj '/CN=stranger' -days $days -out stranger.pem -addext extendedKeyUsage=clientAuth
