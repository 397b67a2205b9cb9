// Command hello greets through a driver, which its first argument names: english,
// which is built in, or a program armature-hello-NAME in the directory HELLO_PLUGINS.
// It is the smallest use of package driver with a kind of its own.
//
//	go run ./examples/hello english Ada
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

type english struct{}

func (english) Info(context.Context) (driver.Info, error) {
	return driver.Info{Name: "english", Version: "1.0"}, nil
}

func (english) Close() error { return nil }

func (english) Greet(_ context.Context, name string) (string, error) {
	if name == "" {
		return "", fault.New(fault.Invalid, "there is nobody to greet")
	}
	return "Hello, " + name + "!", nil
}

func openEnglish(context.Context, json.RawMessage) (Greeter, error) { return english{}, nil }

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: hello DRIVER NAME")
		os.Exit(2)
	}
	text, err := hello(context.Background(), os.Args[1], os.Getenv("HELLO_PLUGINS"), os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
	fmt.Println(text)
}

func hello(ctx context.Context, name, plugins, somebody string) (string, error) {
	var drivers driver.Registry[Greeter]
	drivers.Add("english", openEnglish)
	p, err := drivers.Launch(ctx, Kind, name, driver.PluginConfig{Dir: plugins})
	if err != nil {
		return "", err
	}
	text, err := p.Driver().Greet(ctx, somebody)
	if cerr := p.Close(ctx); err == nil {
		err = cerr
	}
	return text, err
}
