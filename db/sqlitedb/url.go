package sqlitedb

import (
	"database/sql/driver"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/armature-go/armature/db/internal/engine"
	"github.com/armature-go/armature/fault"
)

// parseURL returns the target of the path after sqlite://. The path is absolute if it begins with a slash,
// or with two slashes as in SQLAlchemy. Otherwise it is relative to the process's directory. It may be
// percent-encoded. A # is a part of the path, and so is a % without two digits after it.
func parseURL(raw string) (engine.Target, error) {
	rest := strings.TrimPrefix(raw, "sqlite://")
	path := strings.ReplaceAll(rest, "#", "%23")
	if strings.Contains(path, "?") {
		return engine.Target{}, fault.New(fault.Invalid, "sqlite database URL has no options: write a ? in the path as %%3F")
	}
	if decoded, err := url.PathUnescape(path); err == nil {
		path = decoded
	} else {
		path = rest
	}
	if strings.HasPrefix(path, "//") { // sqlite:////absolute/path
		path = path[1:]
	}
	memory := path == "/:memory:"
	switch {
	case path == "" || strings.HasSuffix(path, "/"):
		return engine.Target{}, fault.New(fault.Invalid, "sqlite database URL has no file: %s", engine.WantURL)
	case strings.ContainsRune(path, 0):
		return engine.Target{}, fault.New(fault.Invalid, "sqlite database URL has a NUL in the path: %s", engine.WantURL)
	}
	file, created := "file::memory:", ""
	if !memory {
		abs, err := filepath.Abs(path)
		if err != nil {
			return engine.Target{}, fault.New(fault.Invalid, "sqlite database URL: %w", err)
		}
		file, path, created = (&url.URL{Scheme: "file", OmitHost: true, Path: abs}).String(), abs, abs
	}
	return engine.Target{
		Connector: func(o *engine.Observer) driver.Connector { return newConnector(file, created, o) },
		Shown:     (&url.URL{Scheme: "sqlite", Path: path}).String(), Memory: memory,
	}, nil
}
