#!/usr/bin/env python3
"""Stored format 1 written a second time, in another language and with another AES-GCM, from docs/format.md alone.

    python3 generate.py check        compares this implementation with format1.json
    python3 generate.py rejections   prints a candidate for rejections.json
    python3 generate.py local        prints a candidate for local1.json

Needs Python 3.9 and the package `cryptography`. The files beside it are FROZEN: see README.md.
"""

import hashlib
import json
import pathlib
import sys
import uuid

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ARN = "arn:aws:kms:eu-central-1:111122223333:key/0d1f6a52-5c3e-4f0a-9d2e-1b2c3d4e5f60"
OTHER_ARN = ARN[:-1] + "1"
LOCAL = "local:6f1c0c1e-8a51-4c7e-9a63-0f3f0f3a9b11"


def lp(x):
    return len(x).to_bytes(4, "big") + x


def key_id(kind, identity, version, epoch):
    parts = b"".join(lp(p.encode()) for p in (kind, identity, version))
    digest = hashlib.sha256(b"kube-kms/key-id/v1" + parts + epoch.to_bytes(8, "big")).hexdigest()
    return "k1-" + digest[:32]


def context_digest(pairs):
    parts = b"".join(lp(k.encode()) + lp(v.encode()) for k, v in sorted(pairs.items(), key=lambda p: p[0].encode()))
    return hashlib.sha256(b"kube-kms/context/v1" + parts).digest()


def aad(key_id, annotations):
    parts = b"".join(lp(k.encode()) + lp(v) for k, v in sorted(annotations.items(), key=lambda p: p[0].encode()))
    return hashlib.sha256(b"kube-kms/v1" + lp(key_id.encode()) + parts).digest()


def seal(dek, nonce, key_id, annotations, plaintext):
    return b"\x01" + nonce + AESGCM(dek).encrypt(nonce, plaintext, aad(key_id, annotations))


def check():
    known = json.loads(pathlib.Path(__file__).with_name("format1.json").read_text())
    for v in known["key_id"]:
        assert key_id(v["kind"], v["identity"], v["version"], v["epoch"]) == v["key_id"], v
    for v in known["context"]:
        assert context_digest(v["pairs"]).hex() == v["digest"], v
    for v in known["seal"]:
        annotations = {k: bytes.fromhex(x) for k, x in v["annotations"].items()}
        assert aad(v["key_id"], annotations).hex() == v["aad"], v
        dek, nonce, plaintext = (bytes.fromhex(v[k]) for k in ("dek", "nonce", "plaintext"))
        assert seal(dek, nonce, v["key_id"], annotations, plaintext).hex() == v["ciphertext"], v
    print("format1.json agrees")


def flip(x, at, bit=1):
    return x[:at] + bytes([x[at] ^ bit]) + x[at + 1:]


def rejections():
    dek_a, dek_b = bytes(range(32)), bytes(range(0x80, 0xA0))
    wrapped_a = b"wrapped DEK A, as a KMS would return it, opaque"
    wrapped_b = b"wrapped DEK B, as a KMS would return it, opaque"
    ours = key_id("aws", ARN, "a1" * 32, 0)
    plaintext = bytes(range(0x60, 0x80))
    good = {
        "dek.kube-kms": wrapped_a,
        "kek.kube-kms": ("aws:" + ARN).encode(),
        "dek.r1.kube-kms": b"wrapped DEK A under the recovery KEK",
        "kek.r1.kube-kms": LOCAL.encode(),
    }
    of_b = dict(good, **{"dek.kube-kms": wrapped_b})
    sealed = seal(dek_a, bytes(range(0x40, 0x4C)), ours, good, plaintext)
    sealed_b = seal(dek_b, bytes(range(0x50, 0x5C)), ours, of_b, plaintext)

    def text(x):
        # One byte repeated very often is written as HEX*TIMES, or this file could not be read.
        return f"{x[:1].hex()}*{len(x)}" if len(x) > 200 and len(set(x)) == 1 else x.hex()

    def triple(ciphertext=sealed, id=ours, annotations=good):
        id = f"{id[0]}*{len(id)}" if len(id) > 200 else id
        return {"ciphertext": text(ciphertext), "key_id": id, "annotations": {k: text(v) for k, v in annotations.items()}}

    cases = []

    def case(name, reason, **changed):
        unwraps_to = changed.pop("unwraps_to", None)
        cases.append({"name": name, "reason": reason, **triple(**changed), **({"unwraps_to": unwraps_to.hex()} if unwraps_to else {})})

    def without(*names):
        return {k: v for k, v in good.items() if k not in names}

    def renamed(old, new):
        return {new if k == old else k: v for k, v in good.items()}

    def with_(name, value):
        return dict(good, **{name: value})

    case("ciphertext empty", "ciphertext-empty", ciphertext=b"")
    case("ciphertext truncated to the version byte", "ciphertext-too-short", ciphertext=sealed[:1])
    case("ciphertext truncated inside the nonce", "ciphertext-too-short", ciphertext=sealed[:7])
    case("ciphertext truncated after the nonce", "ciphertext-too-short", ciphertext=sealed[:13])
    case("ciphertext truncated inside what would be the tag", "ciphertext-too-short", ciphertext=sealed[:20])
    case("ciphertext with no byte of body", "ciphertext-too-short", ciphertext=sealed[:29])
    case("ciphertext truncated to one byte of body", "open-failed", ciphertext=sealed[:30])
    case("ciphertext truncated by the tag", "open-failed", ciphertext=sealed[:-16])
    case("ciphertext truncated by one byte", "open-failed", ciphertext=sealed[:-1])
    case("ciphertext without its version byte", "format-unknown", ciphertext=sealed[1:])
    case("ciphertext one byte longer", "open-failed", ciphertext=sealed + b"\0")
    case("ciphertext of 1024 bytes", "open-failed", ciphertext=b"\x01" * 1024)
    case("ciphertext of 1025 bytes", "ciphertext-too-long", ciphertext=b"\x01" * 1025)
    case("version byte 0", "format-unknown", ciphertext=b"\0" + sealed[1:])
    case("version byte 2", "format-unknown", ciphertext=b"\x02" + sealed[1:])
    case("version byte 255", "format-unknown", ciphertext=b"\xff" + sealed[1:])
    case("first nonce byte flipped", "open-failed", ciphertext=flip(sealed, 1))
    case("last nonce byte flipped", "open-failed", ciphertext=flip(sealed, 12, 0x80))
    case("first body byte flipped", "open-failed", ciphertext=flip(sealed, 13))
    case("last body byte flipped", "open-failed", ciphertext=flip(sealed, 44, 0x80))
    case("first tag byte flipped", "open-failed", ciphertext=flip(sealed, 45))
    case("last tag byte flipped", "open-failed", ciphertext=flip(sealed, 60, 0x80))
    case("ciphertext of another DEK", "open-failed", ciphertext=sealed_b)
    case("key_id of another epoch", "open-failed", id=key_id("aws", ARN, "a1" * 32, 1))
    case("key_id in upper case", "open-failed", id=ours.upper())
    case("key_id with a blank at its end", "open-failed", id=ours + " ")
    case("key_id of 1024 bytes", "open-failed", id="k" * 1024)
    case("key_id empty", "key-id-empty", id="")
    case("key_id of 1025 bytes", "key-id-too-long", id="k" * 1025)
    case("no annotations", "annotation-missing", annotations={})
    case("dek missing", "annotation-missing", annotations=without("dek.kube-kms"))
    case("kek missing", "annotation-missing", annotations=without("kek.kube-kms"))
    case("recovery dek missing", "open-failed", annotations=without("dek.r1.kube-kms"))
    case("recovery kek missing", "open-failed", annotations=without("kek.r1.kube-kms"))
    case("both recovery annotations missing", "open-failed", annotations=without("dek.r1.kube-kms", "kek.r1.kube-kms"))
    case("annotation added", "open-failed", annotations=with_("note.kube-kms", b"x"))
    case("empty annotation added", "open-failed", annotations=with_("note.kube-kms", b""))
    case("dek renamed", "annotation-missing", annotations=renamed("dek.kube-kms", "dek.kube-kmz"))
    case("kek renamed", "annotation-missing", annotations=renamed("kek.kube-kms", "KEK.kube-kms"))
    case("recovery dek renamed", "open-failed", annotations=renamed("dek.r1.kube-kms", "dek.r2.kube-kms"))
    case("recovery kek renamed", "open-failed", annotations=renamed("kek.r1.kube-kms", "kek.r2.kube-kms"))
    case("dek empty", "annotation-invalid", annotations=with_("dek.kube-kms", b""))
    case("kek empty", "annotation-invalid", annotations=with_("kek.kube-kms", b""))
    case("recovery dek empty", "open-failed", annotations=with_("dek.r1.kube-kms", b""))
    case("recovery kek empty", "open-failed", annotations=with_("kek.r1.kube-kms", b""))
    case("dek with a changed byte", "wrapped-dek-rejected", annotations=with_("dek.kube-kms", flip(wrapped_a, 20)))
    case("kek with a changed byte: another key", "kek-not-configured", annotations=with_("kek.kube-kms", ("aws:" + OTHER_ARN).encode()))
    case("kek of another kind", "kek-not-configured", annotations=with_("kek.kube-kms", ("awz:" + ARN).encode()))
    case("kek without a kind", "annotation-invalid", annotations=with_("kek.kube-kms", b"aws"))
    case("kek with a kind in upper case", "annotation-invalid", annotations=with_("kek.kube-kms", ("AWS:" + ARN).encode()))
    case("kek with a line break", "annotation-invalid", annotations=with_("kek.kube-kms", ("aws:" + ARN + "\n").encode()))
    case("kek that is not UTF-8", "annotation-invalid", annotations=with_("kek.kube-kms", b"aws:\xff"))
    case("recovery dek with a changed byte", "open-failed", annotations=with_("dek.r1.kube-kms", flip(good["dek.r1.kube-kms"], 3)))
    case("recovery kek with a changed byte", "open-failed", annotations=with_("kek.r1.kube-kms", flip(good["kek.r1.kube-kms"], 9)))
    case("dek of 8193 bytes", "annotation-invalid", annotations=with_("dek.kube-kms", b"x" * 8193))
    case("annotations over 32 KiB", "annotations-too-large", annotations=with_("note.kube-kms", b"x" * 32768))
    case("dek of another DEK", "open-failed", annotations=of_b)
    case("recovery dek in the place of dek", "wrapped-dek-rejected", annotations=with_("dek.kube-kms", good["dek.r1.kube-kms"]))
    case("dek and recovery dek swapped", "wrapped-dek-rejected", annotations=dict(good, **{"dek.kube-kms": good["dek.r1.kube-kms"], "dek.r1.kube-kms": wrapped_a}))
    case("the KEK unwraps to another DEK", "open-failed", unwraps_to=dek_b)

    print(json.dumps({
        "about": "format 1: what must be refused, and why; see README.md. Bytes in hex; HEX*N is one byte N times (in key_id: one character)",
        "kek": "aws:" + ARN,
        "unwraps": {wrapped_a.hex(): dek_a.hex(), wrapped_b.hex(): dek_b.hex()},
        "good": dict(triple(), plaintext=plaintext.hex()),
        "rejections": cases,
    }, indent=1, ensure_ascii=False))


def local():
    keyring, version = uuid.UUID(LOCAL.split(":")[1]), uuid.UUID("2f2b5a1e-3f7f-4c57-8a38-4f0f7a8d1c22")
    cases = []
    for material, dek, nonce, pairs in [
        (bytes(range(0x80, 0xA0)), bytes(range(32)), bytes(range(0x40, 0x4C)), {"cluster": "prod"}),
        (bytes(range(0x80, 0xA0)), bytes(range(32)), bytes(range(0x40, 0x4C)), {}),
        (b"\x11" * 32, b"\xff" * 32, bytes(12), {"a": "", "z": "ü"}),
    ]:
        bound = b"kube-kms/local/v1" + keyring.bytes + version.bytes + context_digest(dict(pairs, **{"kube-kms": "v1"}))
        blob = b"\x01" + version.bytes + nonce + AESGCM(material).encrypt(nonce, dek, bound)
        cases.append({"keyring": str(keyring), "version": str(version), "material": material.hex(), "dek": dek.hex(),
                      "nonce": nonce.hex(), "context": pairs, "blob": blob.hex()})
    print(json.dumps({"about": "a DEK wrapped by the `local` KEK, layout 0x01 of src/kek/local/mod.rs; `context` without kube-kms=v1",
                      "wrap": cases}, indent=1, ensure_ascii=False))


{"check": check, "local": local, "rejections": rejections}[sys.argv[1]]()
