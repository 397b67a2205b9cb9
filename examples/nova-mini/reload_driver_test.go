package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReloadDriver: a reload replaces the driver program if the checksum in the configuration has changed. A new program with another
// checksum is refused, and the old program continues. A reload without a change starts nothing.
func TestReloadDriver(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	dir := t.TempDir()
	program := filepath.Join(dir, "acme")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../drivers/acme/armature-compute-acme").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	plugin, file, socket := filepath.Join(dir, "armature-compute-acme"), filepath.Join(dir, "nova.conf"), filepath.Join(dir, "admin.sock")
	install := func(n int) (checksum string) {
		text := fmt.Sprintf("#!/bin/sh\n# %d\nexec %s\n", n, program)
		if err := errors.Join(os.WriteFile(plugin+".new", []byte(text), 0o700), os.Rename(plugin+".new", plugin)); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	configure := func(sum string) {
		text := "[DEFAULT]\nstate_path = " + dir + "\nosapi_compute_listen_port = 0\nadmin_listen = unix:" + socket + "\nplugin_dir = " + dir +
			"\ncompute_driver = acme\n[driver_acme]\nplugin_sha256 = " + sum + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := install(1)
	configure(first)
	if _, err := serve(t, "--config-file", file); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	request := func(method, path string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://admin"+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	for code := 0; code != http.StatusOK; {
		code, _ = request(http.MethodGet, "/readyz")
	}
	reload := func(want int, says string, replaced int) {
		t.Helper()
		if code, body := request(http.MethodPost, "/debug/reload"); code != want || !strings.Contains(body, says) {
			t.Errorf("reload: %d %s, want %d with %q", code, body, want, says)
		}
		_, metrics := request(http.MethodGet, "/metrics")
		for _, line := range []string{
			fmt.Sprintf("armature_driver_replacements_total{driver=\"acme\",host=\"node-1\"} %d\n", replaced),
			"armature_driver_restarts_total{driver=\"acme\",host=\"node-1\"} 0\n",
			"armature_driver_up{driver=\"acme\",host=\"node-1\"} 1\n",
		} {
			if !strings.Contains(metrics, line) {
				t.Errorf("the metrics do not have %s", line)
			}
		}
	}
	reload(http.StatusOK, "ok", 0)
	second := install(2)
	reload(http.StatusBadRequest, file+":8: [driver_acme] plugin_sha256", 0)
	configure(second)
	reload(http.StatusOK, "ok", 1)
	reload(http.StatusOK, "ok", 1)
	configure(first)
	reload(http.StatusBadRequest, "which stays as it is", 1)
	install(1)
	reload(http.StatusOK, "ok", 2)
}
