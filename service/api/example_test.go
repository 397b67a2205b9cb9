package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

func Example() {
	type greeting struct {
		Text string `json:"text"`
	}
	mux := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	api.Handle(mux, "GET /hello/{name}", func(_ context.Context, r *api.Request[api.None]) (greeting, error) {
		if r.PathValue("name") == "eve" {
			return greeting{}, fault.New(fault.NotFound, "eve is not here")
		}
		return greeting{"hello " + r.PathValue("name")}, nil
	})
	for _, name := range []string{"ada", "eve"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/hello/"+name, http.NoBody))
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 {"text":"hello ada"}
	// 404 {"itemNotFound":{"code":404,"message":"eve is not here"}}
}
