package api

import (
	"net/http"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"github.com/rs/cors"
)

// CORS says which web pages may use the API.
type CORS struct {
	// Origins are those of the pages, such as "https://dashboard.example.org"; "*" are
	// all, which is only for an API without authentication.
	Origins []string
	// MaxAge is how long a browser may remember that. Default 10 minutes.
	MaxAge time.Duration
}

// around puts what is not about routes around the handler.
func around(cfg Config, h http.Handler) http.Handler {
	if cfg.Gzip {
		wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(1024))
		if err != nil {
			panic("api: " + err.Error())
		}
		h = wrap(h)
	}
	if c := cfg.CORS; c != nil {
		age := c.MaxAge
		if age <= 0 {
			age = 10 * time.Minute
		}
		exposed := append([]string{requestIDHeader, versionHeader, "Location", "ETag", "Retry-After"}, cfg.RequestIDHeaders...)
		if cfg.Microversions != nil {
			exposed = append(exposed, cfg.Microversions.Headers...)
		}
		h = cors.New(cors.Options{
			AllowedOrigins: c.Origins, MaxAge: int(age.Seconds()), ExposedHeaders: exposed, AllowedHeaders: []string{"*"},
			AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
		}).Handler(h)
	}
	return h
}
