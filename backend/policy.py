"""The headers that say what a browser may do with an answer."""

import base64
import hashlib
import re

SHARE_ASSETS = "https://gradio.s3-us-west-2.amazonaws.com"
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'self'"

_SCRIPT = re.compile(rb"<script(?P<attributes>[^>]*)>(?P<text>.*?)</script>", re.DOTALL | re.IGNORECASE)


def content_policy(hashes: tuple[str, ...], share: bool) -> str:
    """The content policy of a page whose inline scripts have these hashes.

    Gradio evaluates the `js=` of events and Vega its expressions, hence 'unsafe-eval'. Inline scripts and handlers
    that somebody smuggled in through a name or a caption do not run, and nothing can be sent to another host.

    Args:
        hashes: SHA-256 of each, in base64.
        share: whether the page comes with the share link's assets.
    """
    assets = f" {SHARE_ASSETS}" if share else ""
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return "; ".join(
        (
            f"default-src 'self'{assets}",
            f"script-src 'self' 'unsafe-eval' {scripts}{assets}".rstrip(),
            f"style-src 'self' 'unsafe-inline'{assets}",
            f"img-src 'self' data: blob:{assets}",
            f"font-src 'self' data:{assets}",
            "media-src 'self' data: blob:",
            f"connect-src 'self' data: blob:{assets}",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'self'",
        )
    )


def safety(policy: str) -> list[tuple[str, str]]:
    """The headers that every answer has, with its content policy."""
    return [
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ]


def script_hashes(page: bytes) -> tuple[str, ...]:
    """SHA-256 in base64 of each inline script of a page."""
    texts = [match["text"] for match in _SCRIPT.finditer(page) if b"src=" not in match["attributes"].lower()]
    return tuple(base64.b64encode(hashlib.sha256(text).digest()).decode() for text in texts)
