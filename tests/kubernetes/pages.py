"""Pages of a node, as whoever stands outside reads them."""

import urllib.error
import urllib.request


def page(address, path):
    """Status and text of an HTTP page; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)
