package api_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/service/api"
)

// TestSlowReader: a client that does not read its reply loses its connection after WriteTimeout, so that the API does not hold the reply for longer.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond
	m := api.New(api.Config{WriteTimeout: timeout})
	type reply struct {
		Text string `json:"text"`
	}
	api.Handle(m, "GET /long", func(context.Context, *api.Request[api.None]) (reply, error) {
		return reply{strings.Repeat("x", 64<<20)}, nil // more than the buffers of the sockets
	})
	ended := make(chan time.Duration, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		defer func() { ended <- time.Since(began) }()
		m.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprint(c, "GET /long HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case took := <-ended:
		if took < timeout {
			t.Errorf("the reply ended after %v, before the timeout of %v", took, timeout)
		}
	case <-time.After(20 * time.Second):
		t.Error("the reply has not ended")
	}
}
