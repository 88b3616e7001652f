"""cluster.yaml and what lies beside it, read by the programs that will read them.

Ray's own schema and preparation, its AWS bootstrap and node launcher against moto's EC2, IAM and CloudFormation;
the manifests against the field names of KubeRay's API reference.
"""

import ast
import importlib.metadata
import re
import subprocess
import tomllib
import types
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private import util
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

ROOT = Path(__file__).parent.parent
POOLS = {"head", "ingest", "train", "generate", "generate_8cpu", "generate_16cpu", "sweep"}
GPU_NODES = POOLS - {"head", "ingest"}
SPOT = POOLS - {"head", "train"}


def aws():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def gcp():
    """What the command in the file's own header makes of it."""
    text = (ROOT / "cluster.yaml").read_text()
    command = re.search(r"^#   (awk .*?) \\\n", text, re.M | re.S)[1]
    made = subprocess.run(
        ["bash", "-c", f"{command} cluster.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return yaml.safe_load(made.stdout)


@pytest.mark.parametrize("config", [aws, gcp])
def test_ray_takes_it(config):
    prepared = util.prepare_config(config())
    util.validate_config(prepared)
    assert set(prepared["available_node_types"]) == POOLS
    wrong = config()
    wrong["available_node_types"]["train"]["max_worker"] = 2
    with pytest.raises(Exception, match="max_worker"):
        util.validate_config(util.prepare_config(wrong))


def test_the_autoscaler_reads_the_pools():
    pools = AutoscalingConfig(aws(), skip_content_hash=True).get_node_type_configs()
    assert {name for name, pool in pools.items() if pool.min_worker_nodes} == set()
    assert pools["head"].max_worker_nodes == 1
    assert all(pools[name].max_worker_nodes > 0 for name in POOLS)
    assert sorted(POOLS - {"head"}, key=lambda name: -pools[name].priority)[0] == "ingest"  # no GPU node for CPU work
    assert pools["generate"].priority > pools["sweep"].priority > pools["train"].priority
    assert pools["train"].idle_timeout_s == 900
    assert {name for name, pool in pools.items() if pool.resources.get("GPU")} == GPU_NODES


def test_the_shape_fits_the_pools():
    """`--shape cluster` on these nodes: all ranks on one machine, a generator a node, two trials a node."""
    from raydr.shapes import SHAPES

    shape, pools = SHAPES["cluster"], aws()["available_node_types"]
    assert pools["train"]["resources"]["GPU"] >= shape.train_workers * shape.train_gpus
    for name in ("generate", "generate_8cpu", "generate_16cpu"):
        assert pools[name]["resources"]["GPU"] >= shape.generator_gpus
        assert pools[name]["resources"]["CPU"] >= shape.generator_cpus + 1
        assert pools[name]["max_workers"] >= shape.generators
    assert pools["sweep"]["resources"]["GPU"] >= 2 * shape.trial_gpus
    assert pools["sweep"]["resources"]["CPU"] >= 2 * shape.trial_cpus


@pytest.mark.parametrize("config", [aws, gcp])
def test_versions_token_and_ports(config):
    told = config()
    (install,) = [command for command in told["setup_commands"] if "pip install" in command]
    assert "==2.60.*'" in install
    pinned = re.search(r"ray\[.*?\](==[\d.*]+)", (ROOT / "pyproject.toml").read_text())[1]
    assert f"ray[data,train,tune,default]{pinned}" in install
    assert importlib.metadata.version("ray").startswith(pinned.strip("=*"))
    starts = [c for key in ("head", "worker") for c in told[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("export RAY_AUTH_MODE=token" in command for command in starts)
    assert told["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    text = "\n".join([*told["head_start_ray_commands"], *told["worker_start_ray_commands"]])
    for service in ("--dashboard-host=", "--web.listen-address=", "GF_SERVER_HTTP_ADDR="):
        assert f"{service}127.0.0.1" in text
    assert "0.0.0.0" not in text
    (poller,) = [command for command in told["worker_start_ray_commands"] if "raydr.cluster.spot" in command]
    assert "RAY_AUTH_MODE=token" in poller  # the drain call needs the token too
    assert "remount,size=60% /dev/shm" in "\n".join(told["setup_commands"])


def test_every_mounted_file_is_here():
    for local in aws()["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


def test_commands_are_shell():
    """`bash -n` over every command, as the launcher would run it."""
    told = aws()
    commands = [command for key, value in told.items() if key.endswith("_commands") for command in value]
    assert len(commands) > 12
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_google_nodes():
    pools = gcp()["available_node_types"]
    assert gcp()["provider"]["type"] == "gcp"
    for name, pool in pools.items():
        config = pool["node_config"]
        assert config["machineType"]
        assert "InstanceType" not in config
        assert config["disks"][0]["initializeParams"]["diskSizeGb"] == 200
        spot = any(item.get("preemptible") for item in config.get("scheduling", []))
        assert spot == (name in SPOT), name
    assert pools["generate_16cpu"]["node_config"]["machineType"] == "g2-standard-16"


def test_prices_are_there_for_every_instance_type():
    prices = tomllib.loads((ROOT / "raydr" / "assets" / "prices.toml").read_text())
    assert prices["checked"] is False  # examples: whoever edits them says so
    used = {pool["node_config"]["InstanceType"] for pool in aws()["available_node_types"].values()}
    assert used <= set(prices["aws"])
    used = {pool["node_config"]["machineType"] for pool in gcp()["available_node_types"].values()}
    assert used <= set(prices["gcp"])
    for table in (prices["aws"], prices["gcp"]):
        for name, price in table.items():
            assert 0 < price["spot"] < price["on_demand"], name
    for name in GPU_NODES:
        pool = aws()["available_node_types"][name]
        assert prices["aws"][pool["node_config"]["InstanceType"]]["gpus"] == pool["resources"]["GPU"]


# The launcher against a simulated AWS.


@pytest.fixture
def amazon(monkeypatch, tmp_path):
    """A moto account with jobs/aws/access.yaml deployed, seen through Ray's own boto3 clients."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key it makes to ~/.ssh
    from ray.autoscaler._private.aws import config, node_provider, utils

    # Only these two wait in vain for Amazon. Without `time.sleep` itself the once-a-second threads that other tests
    # leave behind spin: three steps of this file then took 260 s and more each, instead of one second.
    for module in (config, node_provider):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(sleep=lambda seconds: None))

    caches = [value for module in (config, utils) for value in vars(module).values() if hasattr(value, "cache_clear")]
    with moto.mock_aws():
        for cache in caches:
            cache.cache_clear()
        ec2 = boto3.client("ec2")
        vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
        values = {"Bucket": "my-bucket", "Vpc": vpc, "SshFrom": "203.0.113.7/32"}
        boto3.client("cloudformation").create_stack(
            StackName="raydr",
            TemplateBody=(ROOT / "jobs" / "aws" / "access.yaml").read_text(),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        )
        yield boto3
    for cache in caches:
        cache.cache_clear()


def open_to(ec2, group):
    """{(protocol, first port, last port): who} of a security group's inbound rules."""
    rules = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    return {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort")): [
            *(item["CidrIp"] for item in rule["IpRanges"]),
            *(item["GroupId"] for item in rule["UserIdGroupPairs"]),
        ]
        for rule in rules
    }


def test_nodes_launch_closed_to_the_world(amazon):
    """Bootstrap and launch one node of every pool, as `ray up` and the autoscaler do."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = bootstrap_aws(util.prepare_config(aws()))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    ec2 = amazon.client("ec2")
    groups = set()
    for name in sorted(POOLS):
        node = config["available_node_types"][name]["node_config"]
        made = provider.create_node(node, {"ray-node-type": "head" if name == "head" else "worker"}, 1)
        (instance,) = made.values()
        spoken = ec2.describe_instances(InstanceIds=[instance.id])["Reservations"][0]["Instances"][0]
        assert (spoken.get("InstanceLifecycle") == "spot") == (name in SPOT), name
        role = "raydr-head" if name == "head" else "raydr-node"
        assert spoken["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        groups |= {group["GroupId"] for group in spoken["SecurityGroups"]}
    (group,) = groups
    ports = open_to(ec2, group)
    assert ports.pop(("tcp", 22, 22)) == ["203.0.113.7/32"]
    assert list(ports.values()) == [[group]]  # all else: among the nodes


def test_the_whole_internet_may_not_have_ssh(amazon):
    pattern = yaml.load((ROOT / "jobs" / "aws" / "access.yaml").read_text(), Loader=_CloudFormation)["Parameters"][
        "SshFrom"
    ]["AllowedPattern"]
    assert re.fullmatch(pattern, "203.0.113.7/32")
    assert not re.fullmatch(pattern, "0.0.0.0/0")


def test_roles_reach_one_bucket_and_one_cluster(amazon):
    iam = amazon.client("iam")
    assert iam.list_attached_role_policies(RoleName="raydr-head")["AttachedPolicies"]
    (policy,) = iam.list_attached_role_policies(RoleName="raydr-node")["AttachedPolicies"]
    version = iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId="v1")["PolicyVersion"]["Document"]
    assert {item["Resource"].split(":::")[1] for item in version["Statement"]} == {"my-bucket", "my-bucket/*"}
    assert iam.list_role_policies(RoleName="raydr-node")["PolicyNames"] == []
    document = iam.get_role_policy(RoleName="raydr-head", PolicyName="autoscaler")["PolicyDocument"]
    # moto gives back a template's inline policy as text, AWS as JSON, which boto3 decodes.
    head = (ast.literal_eval(document) if isinstance(document, str) else document)["Statement"]
    (ending,) = [item for item in head if "ec2:TerminateInstances" in item["Action"]]
    assert ending["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": aws()["cluster_name"]}}
    (passing,) = [item for item in head if item["Action"] == "iam:PassRole"]
    assert passing["Resource"].endswith(":role/raydr-node")


class _CloudFormation(yaml.SafeLoader):
    """Reads the short forms (!Ref, !Sub, !GetAtt) as plain text."""


_CloudFormation.add_multi_constructor("!", lambda loader, tag, node: loader.construct_scalar(node))


# KubeRay. Field names of its API reference (ray.io/v1, v1.6.2).
RAY_CLUSTER = {
    "upgradeStrategy", "authOptions", "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations",
    "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs",
}  # fmt: skip
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
HEAD = {"template", "headService", "enableIngress", "resources", "labels", "rayStartParams", "serviceType"}
WORKERS = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "resources", "labels",
    "rayStartParams", "template", "scaleStrategy", "numOfHosts",
}  # fmt: skip
AUTOSCALER = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version",
    "env", "envFrom", "volumeMounts",
}  # fmt: skip
CONTAINER = {"name", "image", "imagePullPolicy", "resources", "ports", "env", "envFrom", "lifecycle", "volumeMounts"}
POD = {
    "containers", "volumes", "nodeSelector", "tolerations", "terminationGracePeriodSeconds", "serviceAccountName",
    "restartPolicy", "securityContext", "automountServiceAccountToken",
}  # fmt: skip


def manifests(name):
    found = list(yaml.safe_load_all((ROOT / "jobs" / "kuberay" / name).read_text()))
    return {manifest["kind"]: manifest for manifest in found}


def cluster_specs():
    return [
        manifests("raycluster.yaml")["RayCluster"]["spec"],
        manifests("rayjob.yaml")["RayJob"]["spec"]["rayClusterSpec"],
    ]


def check_pod(template):
    assert set(template["spec"]) <= POD
    for container in template["spec"]["containers"]:
        assert set(container) <= CONTAINER, set(container) - CONTAINER
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        # Ray counts limits: a request below would promise CPUs and memory that the node does not keep free.
        assert limits["memory"] == requests["memory"]
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


@pytest.mark.parametrize("number", [0, 1])
def test_kuberay_clusters(number):
    spec = cluster_specs()[number]
    assert set(spec) <= RAY_CLUSTER
    assert spec["rayVersion"].startswith("2.60.")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert set(spec["headGroupSpec"]) <= HEAD
    assert spec["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"  # never a load balancer
    check_pod(spec["headGroupSpec"]["template"])
    names = {group["groupName"] for group in spec["workerGroupSpecs"]}
    assert names == {"ingest", "train", "generate", "sweep"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert group["minReplicas"] == 0
        check_pod(group["template"])
        (container,) = group["template"]["spec"]["containers"]
        shm = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
        assert shm[0]["emptyDir"]["medium"] == "Memory"
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert (gpus > 0) == (group["groupName"] != "ingest")
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert "raydr.cluster.spot --now" in " ".join(command)
        seconds = int(command[command.index("--seconds") + 1])
        assert seconds < group["template"]["spec"]["terminationGracePeriodSeconds"]


def test_the_pre_stop_hook_is_a_command_of_ours(capsys):
    from raydr.cluster import spot

    for group in cluster_specs()[0]["workerGroupSpecs"]:
        command = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        with pytest.raises(SystemExit) as ended:  # --help after them: argparse has taken all that went before
            spot.main([*command[command.index("raydr.cluster.spot") + 1 :], "--help"])
        assert ended.value.code == 0


def test_the_kuberay_job():
    job = manifests("rayjob.yaml")["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    spec = job["spec"]
    assert set(spec) <= RAY_JOB
    assert spec["shutdownAfterJobFinishes"] is True  # else a finished job's head is paid for
    from raydr import cli

    command = spec["entrypoint"].split()
    assert command[:3] == ["python", "-m", "raydr"]
    options, fields = cli.parser().parse_known_args(command[3:])
    assert options.shape == "cluster"
    assert options.out.startswith("s3://")
    assert fields == []
    from raydr import recipes

    recipes.named(options.recipe)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_only_the_cluster_itself_reaches_its_pods(name):
    found = manifests(name)
    policy = found["NetworkPolicy"]["spec"]
    owner = next(kind for kind in ("RayCluster", "RayJob") if kind in found)
    assert policy["policyTypes"] == ["Ingress"]
    chosen = policy["podSelector"]["matchLabels"]
    template = found[owner]["spec"].get("rayClusterSpec", found[owner]["spec"])
    groups = [template["headGroupSpec"], *template["workerGroupSpecs"]]
    assert all(chosen.items() <= group["template"]["metadata"]["labels"].items() for group in groups)
    inside, *outside = policy["ingress"]
    assert inside["from"] == [{"podSelector": {"matchLabels": chosen}}]
    assert "ports" not in inside
    for rule in outside:  # others: the Jobs API for the operator and the submitter, which carry the token
        assert [port["port"] for port in rule["ports"]] == [8265]
