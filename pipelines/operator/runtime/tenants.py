"""The cluster's tenants: what a recipe of each namespace may ask for, and whom its pods run as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field

from components.recipe.types import Count, Model, Name, Text
from components.recipe.yaml_io import check, read_yaml
from pipelines.operator.runtime.allowance import Allowance, NotAllowed

TENANTS = "RECAPTION_TENANTS"
Patterns = Annotated[list[Text], Field(min_length=1, max_length=256)]


class Tenant(Model):
    """Some namespaces; what is left out here is as for all namespaces."""

    namespaces: Patterns
    """Patterns of their names."""
    storages: Patterns | None = None
    priority_classes: Patterns | None = None
    node_selectors: Patterns | None = None
    tolerations: Patterns | None = None
    resources: Patterns | None = None
    parallelism: Count | None = None
    gpus: Count | None = None
    service_account: Name | None = None
    """Account of the launched pods."""
    secret: Name | None = None
    """Secret of their environment variables."""

    def narrow(self, shared: Allowance) -> Allowance:
        """Replace what this tenant has of its own."""
        said = self.model_dump(exclude={"namespaces", "service_account", "secret"}, exclude_none=True)
        own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        return replace(shared, **own, own=frozenset(own), tenant=", ".join(self.namespaces))


class TenantList(Model):
    """The text of the setting."""

    tenants: Annotated[list[Tenant], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True)
class Tenancy:
    """What one namespace's recipes may ask for, and whom their pods run as."""

    allowance: Allowance
    service_account: str
    secret: str


@dataclass(frozen=True)
class Tenants:
    """All namespaces alike, or each as the first tenant says whose pattern its name matches."""

    shared: Tenancy = field(default_factory=lambda: Tenancy(Allowance(), "recaption", "recaption"))
    listed: tuple[Tenant, ...] = ()

    @classmethod
    def from_environment(cls, given: Mapping[str, str]) -> Tenants:
        """Read the settings. Raises PermanentError with a line per mistake."""
        shared = Tenancy(
            Allowance.from_environment(given),
            given.get("RECAPTION_JOB_SERVICE_ACCOUNT") or "recaption",
            given.get("RECAPTION_JOB_SECRET") or "recaption",
        )
        text = given.get(TENANTS, "")
        if not text.strip():
            return cls(shared)
        found = read_yaml(text, TENANTS, expected="a mapping with the key tenants, a list")
        return cls(shared, tuple(check(TenantList, found, TENANTS).tenants))

    def of(self, namespace: str) -> Tenancy:
        """Return what holds for a namespace. Raises NotAllowed where there are tenants and it is none of them."""
        if not self.listed:
            return self.shared
        for tenant in self.listed:
            if any(fnmatchcase(namespace, pattern) for pattern in tenant.namespaces):
                return self._tenancy(tenant)
        names = ", ".join(pattern for tenant in self.listed for pattern in tenant.namespaces)
        raise NotAllowed(f"namespace {namespace}: this cluster allows {names} ({TENANTS} of the operator)")

    def all(self) -> list[Tenancy]:
        """Return what holds for every tenant; where none is listed, for all namespaces."""
        return [self._tenancy(tenant) for tenant in self.listed] or [self.shared]

    def _tenancy(self, tenant: Tenant) -> Tenancy:
        return Tenancy(
            tenant.narrow(self.shared.allowance),
            tenant.service_account or self.shared.service_account,
            tenant.secret or self.shared.secret,
        )
