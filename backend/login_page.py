"""The page at which one logs in: the only one that is there without a login."""

from html import escape


def login_page(message: str) -> str:
    """The page, with what was wrong with the last attempt."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LoRA Loom: log in</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0; }}
form {{ display: grid; gap: .75rem; width: min(20rem, 90vw); }}
h1 {{ font-size: 1.4rem; margin: 0; }}
label {{ display: grid; gap: .2rem; font-size: .9rem; }}
input, button {{ font: inherit; padding: .5rem .6rem; border-radius: .4rem; border: 1px solid #8888; }}
button {{ background: #4f46e5; color: #fff; border: 0; cursor: pointer; }}
p {{ margin: 0; min-height: 1.5em; color: #d33; }}
</style>
</head>
<body>
<form method="post">
<h1>LoRA Loom</h1>
<label>Username<input name="username" autocomplete="username" autofocus required></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
<p role="alert">{escape(message)}</p>
</form>
</body>
</html>
"""
