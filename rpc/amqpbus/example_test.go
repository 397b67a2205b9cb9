package amqpbus_test

import (
	"context"
	"fmt"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/amqpbus"
)

// For a wrong URL, New returns an error, which does not contain the password.
func ExampleNew() {
	_, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqp://nova:secret@rabbit-1:5672/", "ampq://nova:secret@rabbit-2:5672/"}})
	fmt.Println(fault.CodeOf(err))
	fmt.Println(err)
	// Output:
	// Invalid
	// amqpbus: URL 2 of 2: scheme "ampq" is not amqp or amqps in ampq://nova:xxxxx@rabbit-2:5672/
}

// A service may wait for a broker: it calls Start again after an error.
func ExampleBus_Start() {
	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqp://nova:secret@127.0.0.1:1/"}, ConnectTimeout: time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	defer bus.Stop(ctx)
	for range 2 {
		err = bus.Start(ctx)
		fmt.Println(fault.CodeOf(err))
	}
	fmt.Println("check:", bus.Check(ctx))
	// Output:
	// Unavailable
	// Unavailable
	// check: the bus was not started
}

// Capabilities returns what the bus can do: its limits in bytes, and the time in which
// a handler must acknowledge a message.
func ExampleBus_Capabilities() {
	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqp://nova:secret@rabbit:5672/"}, Exchange: "nova", MaxMessage: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer bus.Close()
	c := bus.Capabilities()
	fmt.Println(c.MaxMessage, c.MaxTopic, c.ConsumerTimeout)
	fmt.Println(c.NoConsumer, c.LiveTopics, c.Persistent, c.Stats().Reconnects)
	// Output:
	// 1048576 250 30m0s
	// true true true 0
}
