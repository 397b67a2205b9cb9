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

// missing returns the Debian packages that are not installed: those of the services, and
// those that tests need: a C compiler for the race detector, curl for the commands that
// nova-mini prints, the generators of code from .proto files, Python's packages for a driver,
// OpenStack's command line, and oslo.config and oslo.policy, with which tests compare this
// project's packages.
func missing(ctx context.Context) []string {
	list := testenv.Missing()
	for _, tool := range []struct{ program, packages string }{{"gcc", "gcc libc6-dev"}, {"curl", "curl"}, {"protoc", "protobuf-compiler"}, {"grpc_python_plugin", "protobuf-compiler-grpc"}, {"openssl", "openssl"}, {"openstack", "python3-openstackclient"}} {
		if _, err := exec.LookPath(tool.program); err != nil {
			list = append(list, strings.Fields(tool.packages)...)
		}
	}
	for _, of := range []struct{ modules, packages string }{{"grpc, google.protobuf", "python3-grpcio python3-protobuf"}, {"oslo_config", "python3-oslo.config"}, {"oslo_policy", "python3-oslo.policy"}} {
		if exec.CommandContext(ctx, "/usr/bin/python3", "-c", "import "+of.modules).Run() != nil {
			list = append(list, strings.Fields(of.packages)...)
		}
	}
	return list
}

// install installs the missing packages with apt-get, if this process runs as root on Debian
// or Ubuntu. Otherwise the error names them. The services of the packages are not started.
func install(ctx context.Context) error {
	missing := missing(ctx)
	if len(missing) == 0 {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("packages are missing: install %s (on Debian or Ubuntu: sudo apt-get install --no-install-recommends %[1]s)",
			strings.Join(missing, " "))
	}
	begin := time.Now()
	fmt.Fprintf(os.Stderr, "testenv: installing %s with apt-get\n", strings.Join(missing, " "))
	done, err := denyStart()
	if err != nil {
		return err
	}
	defer done()
	for _, args := range [][]string{
		{"update"},
		append([]string{"install", "-y", "--no-install-recommends"}, missing...),
	} {
		args = append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	if left := testenv.Missing(); len(left) > 0 {
		return fmt.Errorf("apt-get succeeded, but the programs of %s cannot be found", strings.Join(left, " "))
	}
	fmt.Fprintf(os.Stderr, "testenv: installed in %.1f s\n", time.Since(begin).Seconds())
	return nil
}

// denyStart writes a policy that keeps packages from starting their services, unless the
// machine has a policy of its own. The returned function removes it.
func denyStart() (func(), error) {
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700) //nolint:gosec // it is a program
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
