"""AdmissionReviews as an API server sends them; the shape is that of Kubernetes' API reference."""

from __future__ import annotations

import copy
import json
from base64 import b64decode
from typing import Any

import jsonpatch

Json = dict[str, Any]

UID = "705ab4f5-6393-11e8-b7cc-42010a800002"

# A pod as a ReplicaSet's controller makes it, with what the API server has filled in: it has no name and no namespace yet.
POD: Json = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "generateName": "productpage-v1-6b746f74dc-",
        "creationTimestamp": None,
        "labels": {"app": "productpage", "version": "v1", "pod-template-hash": "6b746f74dc"},
        "annotations": {},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "productpage-v1-6b746f74dc",
                "uid": "b3a9e4f0-0a5c-4f0e-8f39-3a1b7b1f4a55",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
        "managedFields": [
            {
                "manager": "kube-controller-manager",
                "operation": "Update",
                "apiVersion": "v1",
                "time": "2026-11-20T09:30:00Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {"f:generateName": {}, "f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {"f:containers": {}},
                },
            }
        ],
    },
    "spec": {
        "volumes": [
            {
                "name": "kube-api-access-7xk2p",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                        {
                            "downwardAPI": {
                                "items": [
                                    {
                                        "path": "namespace",
                                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                                    }
                                ]
                            }
                        },
                    ],
                    "defaultMode": 420,
                },
            }
        ],
        "containers": [
            {
                "name": "productpage",
                "image": "istio/examples-bookinfo-productpage-v1:1.8.0",
                "ports": [{"containerPort": 9080, "protocol": "TCP"}],
                "resources": {},
                "volumeMounts": [
                    {
                        "name": "kube-api-access-7xk2p",
                        "readOnly": True,
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    }
                ],
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        ],
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    },
    "status": {},
}


def pod(**annotations: str) -> Json:
    """Give the pod with annotations; in their names, two underscores stand for a slash and one for a dot."""
    made = copy.deepcopy(POD)
    made["metadata"]["annotations"] = {
        name.replace("__", "/").replace("_", "."): value for name, value in annotations.items()
    }
    return made


def bare_pod(name: str) -> Json:
    """Give the pod as `kubectl apply` sends it: it has a name, and nobody made it."""
    made = copy.deepcopy(POD)
    for member in ("generateName", "ownerReferences"):
        del made["metadata"][member]
    made["metadata"]["name"] = name
    return made


def review(pod: Json | None, uid: str = UID, **request: Any) -> Json:
    """Give the review of a new pod; `request` replaces members of it, and None takes them out."""
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    whole: Json = {
        "uid": uid,
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "namespace": "bookinfo",
        "operation": "CREATE",
        "userInfo": {
            "username": "system:serviceaccount:kube-system:replicaset-controller",
            "uid": "7fd2a6f7-5d9f-4c4e-9b3c-5a6b8a2d1c11",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
        },
        "object": pod,
        "oldObject": None,
        "dryRun": False,
        "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        **request,
    }
    members = {name: value for name, value in whole.items() if name in ("object", "oldObject") or value is not None}
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": members}


def encoded(review: Json) -> bytes:
    return json.dumps(review).encode()


def patched(pod: Json, answered: Json) -> Json:
    """Do what the API server does with an answer: apply its patch."""
    response = answered["response"]
    assert (response["allowed"], response["patchType"]) == (True, "JSONPatch")
    changed: Json = jsonpatch.apply_patch(pod, json.loads(b64decode(response["patch"], validate=True)))
    return changed
