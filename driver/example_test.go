package driver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// A vendor's program is started, used, and ended. In this example the program is the
// test binary itself. echoKind and the driver are in program_test.go.
func ExampleLaunch() {
	ctx := context.Background()
	self, err := os.Executable()
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := driver.Launch(ctx, echoKind, driver.PluginConfig{
		Program: self,
		Options: json.RawMessage(`{"color": "blue"}`),
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := p.Driver()
	text, err := d.Echo(ctx, "hello")
	fmt.Println(text, err)

	_, err = d.Echo(ctx, "room:the array is full")
	fmt.Println(err, errors.Is(err, errNoRoom), fault.IsRemote(err))

	_, err = d.Echo(ctx, "exit:3") // in the middle of a call the program ends
	fmt.Println(fault.CodeOf(err))
	fmt.Println(p.Close(ctx))
	// Output:
	// hello <nil>
	// host h1: the array is full true true
	// Unknown
	// <nil>
}
