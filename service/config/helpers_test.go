package config_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"
)

// full has options of each type and with each tag.
type full struct {
	Strict   bool              `ini:"strict" default:"true" strict:"true" help:"unknown options are errors"`
	Workers  int               `ini:"workers" default:"4" min:"1" max:"64" help:"concurrency limit" reloadable:"true"`
	Level    string            `ini:"level" default:"info" choices:"debug, info, error" reloadable:"true"`
	Wait     time.Duration     `ini:"wait" default:"60" min:"0.5" max:"1h"`
	Brokers  []string          `ini:"brokers" default:"a,b" max:"3"`
	Labels   map[string]string `ini:"labels" default:"x:1"`
	Addr     netip.Addr        `ini:"addr" default:"127.0.0.1"`
	Old      string            `ini:"old" removed:"replaced by level in 3.0"`
	Database struct {
		URL  string `ini:"url" required:"true" secret:"true" deprecated:"sql_url, DEFAULT.sql_connection"`
		Pool uint8  `ini:"pool" default:"5"`
	} `section:"database"`
	Drivers map[string]map[string]string `sections:"driver_"`
}

var errOdd = errors.New("workers must be even")

// Validate returns errOdd if the number of workers is odd.
func (f *full) Validate() error {
	if f.Workers%2 != 0 {
		return errOdd
	}
	return nil
}

// put writes a file with a mode, and returns its path.
func put(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}
