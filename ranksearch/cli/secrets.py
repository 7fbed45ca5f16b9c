"""Passwords in a configuration: those that would be written to disk are rejected, the others are redacted."""

import os
import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from ranksearch.errors import UserError
from ranksearch.redaction import holds_password, is_secret, leaves, passwords_in

STORAGE_VARIABLE = "RANKSEARCH_STORAGE"


def environment_secrets() -> set[str]:
    """Return the passwords of the storage's address in the environment."""
    return passwords_in(os.environ.get(STORAGE_VARIABLE, ""))


def known_secrets(cfg: DictConfig) -> set[str]:
    """Return the passwords that a configuration takes from the environment.

    Raises:
        UserError: the configuration holds a password, or one of the environment reaches a key beside the storage's.
    """
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=False)):
        if isinstance(value, str) and (holds_password(value) or is_secret(key.rpartition(".")[2], value)):
            raise password_error(key)
        if isinstance(value, str) and not key.startswith("storage.") and _interpolates_password(value):
            raise _interpolation_error(key)
    for key, value in _resolved(cfg, environment=False):
        if isinstance(value, str) and passwords_in(value):
            raise password_error(key)
    values = [(key, value) for key, value in _resolved(cfg, environment=True) if isinstance(value, str)]
    secrets = {password for _, value in values for password in passwords_in(value)} | environment_secrets()
    secrets |= {value for key, value in values if is_secret(key.rpartition(".")[2], value) and value}
    for key, value in values:
        if not key.startswith("storage.") and any(secret in value for secret in secrets):
            raise _interpolation_error(key)
    return secrets


def password_error(key: str) -> UserError:
    """Return the error for a key whose value holds a password."""
    advice = f"put the address into {STORAGE_VARIABLE}, and remove storage.url"
    if key.lstrip("+~") != "storage.url":
        advice = "put it into an environment variable, and refer to that as ${oc.env:NAME}"
    return UserError(f"{key} holds a password, which would be written to disk with the configuration: {advice}")


def _interpolation_error(key: str) -> UserError:
    return UserError(f"{key} holds a password, which would be written to disk: remove its interpolation")


def _interpolates_password(value: str) -> bool:
    """Return whether a setting names an environment variable or storage address that holds a password."""
    # The text itself is searched, because some settings can be resolved only once Hydra is writing.
    storage, secrets = os.environ.get(STORAGE_VARIABLE, ""), environment_secrets()
    texts = [os.environ.get(name.strip(), "") for name in re.findall(r"\$\{\s*oc\.env:([^,{}]*)", value)]
    texts += [storage] if re.search(r"\$\{\s*\.*storage\.url", value) else []
    return any(passwords_in(text) or any(password in text for password in secrets) for text in texts if text)


def _resolved(cfg: DictConfig, environment: bool) -> list[tuple[str, Any]]:
    """Return every resolvable value with its key; without ``environment``, its variables take their defaults."""

    def empty(name: str, default: Any = "") -> str:
        return str(default)

    def walk(node: Any, path: str) -> list[tuple[str, Any]]:
        values: list[tuple[str, Any]] = []
        for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
            try:
                value = node[key]
            except Exception:  # missing or unresolvable; resolvers may raise anything
                continue
            name = f"{path}.{key}" if path else str(key)
            values += walk(value, name) if isinstance(value, DictConfig | ListConfig) else [(name, value)]
        return values

    OmegaConf.register_new_resolver("oc.env", oc.env if environment else empty, replace=True)
    try:
        return walk(cfg, "")
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
