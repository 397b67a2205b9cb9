package config_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/armature-go/armature/service/config"
)

// Sample writes a file for operators: all options with their defaults, as comments.
func ExampleSample() {
	type options struct {
		Workers  int `ini:"workers" default:"4" min:"1" help:"concurrency limit" reloadable:"true"`
		Database struct {
			Connection string `ini:"connection" secret:"true" required:"true" help:"URL of the database"`
		} `section:"database"`
	}
	if err := config.Sample(os.Stdout, new(options), nil); err != nil {
		fmt.Println(err)
	}
	// Output:
	// [DEFAULT]
	//
	// # Concurrency limit. An integer, at least 1. A change takes effect on SIGHUP.
	// #workers = 4
	//
	// [database]
	//
	// # URL of the database. A text. Required. Secret: connection_file may name a
	// # file with the value.
	// #connection =
}

// Inspect is for a tool that checks a file: it lists all errors and still shows the values that are right.
func ExampleInspect() {
	type options struct {
		Workers int    `ini:"workers" default:"4" min:"1"`
		Level   string `ini:"level" default:"info" choices:"debug,info"`
	}
	dir, err := os.MkdirTemp("", "config")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "volume.conf")
	if err := os.WriteFile(file, []byte("[DEFAULT]\nworkers = 0\nlevel = debug\n"), 0o600); err != nil {
		fmt.Println(err)
		return
	}

	c, err := config.Inspect[options](config.Source{Files: []string{file}})
	fmt.Println("wrong:", err != nil)
	for _, v := range c.Values() {
		fmt.Println(v.Name, v.Value, v.Wrong)
	}
	// Output:
	// wrong: true
	// level debug false
	// workers 0 true
}

// A file that was written for a program with oslo.config has variables, and options that only that program
// knows. Lenient accepts both.
func ExampleSource_lenient() {
	type options struct {
		State string `ini:"state_path"`
		Logs  string `ini:"log_dir"`
	}
	var o options
	err := config.Load(&o, config.Source{
		Flags:   map[string]string{"state_path": "/var/lib/volume", "log_dir": "$state_path/logs"},
		Lenient: true,
	})
	fmt.Println(o.Logs, err)
	// Output: /var/lib/volume/logs <nil>
}
