package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/armature-go/armature/internal/testenv"
)

// missingPackages returns the Debian packages that are needed and not installed. The services need some of them. The tests
// need the others:
//
//   - a C compiler for the race detector;
//   - curl for the commands that nova-mini prints;
//   - protoc and its gRPC plugin to generate code;
//   - openssl, Python's gRPC, pip, setuptools and wheel for drivers in Python;
//   - OpenStack's command line;
//   - oslo.config and oslo.policy, with which the packages config and policy are compared.
func missingPackages(ctx context.Context) []string {
	list := testenv.Missing()
	type needed struct{ program, packages string }
	tools := []needed{{"gcc", "gcc libc6-dev"}, {"curl", "curl"}, {"protoc", "protobuf-compiler"}, {"grpc_python_plugin", "protobuf-compiler-grpc"}, {"openssl", "openssl"}, {"openstack", "python3-openstackclient"}}
	if os.Getenv("ARMATURE_TEMPEST") != "" { // make tempest
		tools = append(tools, needed{"tempest", "tempest"})
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool.program); err != nil {
			list = append(list, strings.Fields(tool.packages)...)
		}
	}
	for _, library := range []struct{ modules, packages string }{{"grpc, google.protobuf", "python3-grpcio python3-protobuf"}, {"oslo_config", "python3-oslo.config"}, {"oslo_policy", "python3-oslo.policy"}, {"setuptools, pip, wheel", "python3-pip python3-setuptools python3-wheel"}} {
		if exec.CommandContext(ctx, "/usr/bin/python3", "-c", "import "+library.modules).Run() != nil {
			list = append(list, strings.Fields(library.packages)...)
		}
	}
	return list
}

// installMissing installs the missing packages with apt-get. It does not install NATS, because the package may be older than 2.10: without NATS, installMissing returns the error
// of CheckNATS. If the user is not root or apt-get does not exist, it returns an error that names the packages. The packages' services are not started.
func installMissing(ctx context.Context) error {
	if err := testenv.CheckNATS(); err != nil {
		return err
	}
	packages := missingPackages(ctx)
	if len(packages) == 0 {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("please install %s (on Debian or Ubuntu: sudo apt-get install --no-install-recommends %[1]s)",
			strings.Join(packages, " "))
	}
	begin := time.Now()
	fmt.Fprintf(os.Stderr, "testenv: installing %s with apt-get\n", strings.Join(packages, " "))
	allowStart, err := denyStart()
	if err != nil {
		return fmt.Errorf("prevent packages from starting their services: %w", err)
	}
	defer allowStart()
	for _, args := range [][]string{
		{"update"},
		append([]string{"install", "-y", "--no-install-recommends"}, packages...),
	} {
		args = append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	if missing := missingPackages(ctx); len(missing) > 0 {
		return fmt.Errorf("install with apt-get: apt-get succeeded, but the programs or modules of %s cannot be found: check whether PATH lacks their directory, or another version hides them",
			strings.Join(missing, " "))
	}
	fmt.Fprintf(os.Stderr, "testenv: installed in %.1f s\n", time.Since(begin).Seconds())
	return nil
}

// denyStart writes /usr/sbin/policy-rc.d, which prevents packages from starting their services when they are installed. If
// the file exists, it is the machine's own policy, and denyStart leaves it as it is. The returned function removes the file
// that denyStart wrote.
func denyStart() (func(), error) {
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700) //nolint:gosec // policy-rc.d must be executable
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("#!/bin/sh\nexit 101\n")
	if err := errors.Join(err, f.Chmod(0o700), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(policy))
	}
	return func() { _ = os.Remove(policy) }, nil
}
