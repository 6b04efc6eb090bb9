"""A dataset repository on the stand-in Hub, as the tests of publishing look at it."""

NAME = "me/super-weights"
HELD = f"datasets/{NAME}"


def held(hub):
    repository = hub.repositories[HELD]
    return repository.history[repository.branches["main"]]


def write_there(hub, files, delete=()):
    """Make a commit as somebody else would."""
    kept = {path: data for path, data in held(hub).items() if path not in delete}
    return hub.uploads.add_commit(hub.repositories[HELD], {**kept, **files})


def asked(hub):
    return [(request.method, request.path.partition("?")[0].rpartition("/")[2]) for request in hub.requests]


def writes(hub):
    return [request for request in hub.requests if request.method in ("POST", "PUT")]
