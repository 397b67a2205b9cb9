package testenv

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Promtool returns the path of Prometheus's promtool. If the machine does not have it, Promtool downloads Debian's package
// prometheus (19 MB) into dir and unpacks the program, but does not install the package. It fails with [ErrMissing] if the machine does
// not run Debian, or cannot download the package.
func Promtool(ctx context.Context, dir string) (string, error) {
	if path, err := exec.LookPath("promtool"); err == nil {
		return path, nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", fmt.Errorf("promtool of the package prometheus: %w", ErrMissing)
	}
	deb, err := downloadPackage(ctx, dir, func() (string, error) { return "prometheus", nil })
	if err == nil {
		err = runCommand(ctx, dir, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar x ./usr/bin/promtool`, "sh", deb)
	}
	if err != nil {
		return "", fmt.Errorf("unpack promtool: %w: %w", ErrMissing, err)
	}
	return filepath.Join(dir, "usr/bin/promtool"), nil
}
