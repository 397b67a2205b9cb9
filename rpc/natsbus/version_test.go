package natsbus_test

import (
	"bufio"
	"bytes"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/armature-go/armature/rpc/natsbus"
)

// TestOldServer: the bus works with NATS before 2.10, and logs a WARN.
func TestOldServer(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"2.9.10": true, "2.10.0": false, "2.15.2": false, "3.0.0": false, "1.4.1": true, "odd": false} {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { serveInfo(l, version) })
		var log bytes.Buffer
		b, err := natsbus.New(natsbus.Config{URLs: []string{"nats://" + l.Addr().String()}, ConnectTimeout: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err == nil {
			err = b.Start(t.Context())
		}
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		_ = l.Close()
		wg.Wait()
		if got := strings.Contains(log.String(), "older than 2.10"); got != want {
			t.Errorf("version %s: warned %v, want %v; log: %s", version, got, want, &log)
		}
	}
}

// serveInfo acts as a NATS server of the given version, but only as far as Start needs.
func serveInfo(l net.Listener, version string) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	send := func(s string) { _, _ = c.Write([]byte(s)) }
	send(`INFO {"server_id":"x","version":"` + version + `","max_payload":1048576,"headers":true,"proto":1}` + "\r\n")
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		switch words := strings.Fields(line); {
		case err != nil:
			return
		case len(words) == 0:
		case words[0] == "PING":
			send("PONG\r\n")
		case (words[0] == "PUB" || words[0] == "HPUB") && words[1] == "$JS.API.INFO": // one of the subscriptions is for the answer, but it is not known which one
			const info = `{"type":"io.nats.jetstream.api.v1.account_info_response"}`
			for sid := range 9 {
				send("MSG " + words[2] + " " + string(rune('1'+sid)) + " " + "57\r\n" + info + "\r\n")
			}
		}
	}
}
