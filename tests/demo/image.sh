#!/bin/sh -e
# image.sh OBJECT LAYOUT TAG KEY   puts a BPF object into an OCI layout as a bytecode image and signs it.
#
# OBJECT  an ELF file with BPF programs
# LAYOUT  a directory, made if it is missing
# KEY     a P-256 secret key, PEM
#
# The image is in bpfman's format: one gzipped tar layer with the object, labels in the configuration. The signature is what
# `cosign sign --key` of version 2 makes: a payload that names the image's digest, and an ECDSA signature over its bytes.

object=$1 layout=$2 tag=$3 key=$4
blobs=$layout/blobs/sha256
mkdir -p "$blobs"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) architecture=$(uname -m) ;;
esac

# put FILE MEDIA-TYPE: stores a blob and prints its descriptor without the closing brace, so that more can follow.
put() {
    hex=$(sha256sum "$1" | cut -d ' ' -f 1)
    cp "$1" "$blobs/$hex"
    printf '{"mediaType":"%s","digest":"sha256:%s","size":%d' "$2" "$hex" "$(wc -c <"$1")"
}

# manifest CONFIG-DESCRIPTOR LAYER-DESCRIPTOR
manifest() {
    printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}' "$manifest_type" "$1" "$2"
}

manifest_type=application/vnd.oci.image.manifest.v1+json
config_type=application/vnd.oci.image.config.v1+json
layer_type=application/vnd.oci.image.layer.v1.tar+gzip
payload_type=application/vnd.dev.cosign.simplesigning.v1+json

# The image: layer, configuration, manifest.
cp "$object" "$work/program.o"
tar -C "$work" --owner=0 --group=0 --mtime=@0 -cf "$work/layer.tar" program.o
gzip -n -k "$work/layer.tar"
diff_id=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
printf '{"architecture":"%s","os":"linux","config":{"Labels":{"io.ebpf.programs":"%s","io.ebpf.maps":"%s"}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$architecture" '{\"count_packets\":\"xdp\",\"count_egress\":\"cgroup_skb\"}' '{\"packets\":\"array\"}' "$diff_id" >"$work/config"
manifest "$(put "$work/config" $config_type)}" "$(put "$work/layer.tar.gz" $layer_type)}" >"$work/manifest"
image=$(put "$work/manifest" $manifest_type)
hex=$(sha256sum "$work/manifest" | cut -d ' ' -f 1)

# The signature: payload, signature over its bytes, manifest under a name that says what it signs.
printf '{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"sha256:%s"},"type":"cosign container image signature"},"optional":null}' \
    "$hex" >"$work/payload"
signature=$(openssl dgst -sha256 -sign "$key" "$work/payload" | openssl base64 -A)
payload_hex=$(sha256sum "$work/payload" | cut -d ' ' -f 1)
printf '{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$payload_hex" >"$work/signature-config"
layer="$(put "$work/payload" $payload_type),\"annotations\":{\"dev.cosignproject.cosign/signature\":\"$signature\"}}"
manifest "$(put "$work/signature-config" $config_type)}" "$layer" >"$work/signature"
signed=$(put "$work/signature" $manifest_type)

printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}},%s,"annotations":{"org.opencontainers.image.ref.name":"sha256-%s.sig"}}]}' \
    "$image" "$tag" "$signed" "$hex" >"$layout/index.json"
echo "sha256:$hex"
