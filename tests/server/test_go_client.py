"""A client in Go, made from the proto files as they are, with many streams on one connection."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.server.helpers import ROOT, launch
from tests.server.test_listen import LIMIT

pytestmark = [pytest.mark.long, pytest.mark.interop, pytest.mark.timeout(600)]
GOCODE = Path("/usr/share/gocode")
TOOLS = ("go", "protoc-gen-go", "protoc-gen-go-grpc")
INSTALL = "apt-get install golang-go golang-google-grpc-dev protoc-gen-go protoc-gen-go-grpc"
MANY = """
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "lora-router/router/v1"
)

func one(client pb.InferenceServiceClient) string {
	tokens := int32(10)
	request := &pb.StreamGenerateRequest{
		Input:    &pb.Input{Input: &pb.Input_Text{Text: "one two"}},
		Sampling: &pb.Sampling{MaxTokens: &tokens, MinTokens: &tokens},
	}
	stream, err := client.StreamGenerate(context.Background(), request)
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return "OK"
	}
	rich := status.Convert(err).Proto().String()
	if strings.Contains(rich, "QUEUE_FULL") && strings.Contains(rich, "RetryInfo") {
		return "QUEUE_FULL"
	}
	return err.Error()
}

func main() {
	calls, _ := strconv.Atoi(os.Args[2])
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	client := pb.NewInferenceServiceClient(conn)
	counts, lock, all := map[string]int{}, sync.Mutex{}, sync.WaitGroup{}
	for range calls {
		all.Add(1)
		go func() {
			defer all.Done()
			end := one(client)
			lock.Lock()
			counts[end]++
			lock.Unlock()
		}()
	}
	all.Wait()
	json.NewEncoder(os.Stdout).Encode(counts)
}
"""


async def run(*command: str) -> bytes:
    """What it prints; fails with what it says."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out


def built(program: str, folder: Path) -> str:
    """A program with stubs made from the proto files, compiled; skips where there is no Go."""
    if not all(map(shutil.which, TOOLS)) or not (GOCODE / "src/google.golang.org/grpc").is_dir():
        pytest.skip(f"no Go with gRPC: {INSTALL}")
    source = folder / "src"
    (source / "client").mkdir(parents=True)
    (source / "client" / "main.go").write_text(program)
    protos = map(str, sorted((ROOT / "proto/router/v1").glob("*.proto")))
    compile_ = (sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto"))
    subprocess.run([*compile_, f"--go_out={source}", f"--go-grpc_out={source}", *protos], check=True)
    client = str(folder / "go_client")
    paths = {"GO111MODULE": "off", "GOPATH": f"{folder}:{GOCODE}", "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    subprocess.run(["go", "build", "-o", client, "client"], env={**os.environ, **paths}, check=True)
    return client


async def test_250_and_1000_streams_on_one_connection(tmp_path: Path) -> None:
    client = built(MANY, tmp_path)
    process, address = await launch("--step", "0.02")
    for calls in (250, 1000):
        ends = json.loads(await run(client, address, str(calls)))
        assert set(ends) <= {"OK", "QUEUE_FULL"}, ends
        assert ends["OK"] >= min(calls, LIMIT)
    process.kill()
    await process.communicate()
