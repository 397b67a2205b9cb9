# What each target is for stands in CONTRIBUTING.md. Needed: Go, make, git and
# the usual Unix commands; `make test` and its like install RabbitMQ, NATS and
# MariaDB where they may, and else say what to install.

GO   ?= go
TOOL := $(GO) tool -modfile=tools/go.mod

# How long the tests of one package may take, each benchmark, and each fuzzing of
# a decoder; how often `make soak` runs every test.
TIMEOUT   ?= 15m
# The libvirt driver is built with it, and nothing else minds.
TAGS      := -tags libvirt_dlopen
BENCHTIME ?= 2s
ROUNDS    ?= 20
FUZZ     ?= 20000x

# WITH runs a command with a private RabbitMQ, NATS and MariaDB. It is built,
# not started by `go run`, and takes the place of the recipe's shell, so that a signal
# to make reaches it, and make waits until it has stopped all it started.
WITH := exec bin/testenv --
SELF := $(MAKE) --no-print-directory

.PHONY: run test short lint bench chaos soak fuzz generate fmt clean checks vet tidy vuln unit bin/testenv
.NOTPARALLEL: # two tests of time on the same cores prove nothing

run:
	$(GO) run ./examples/nova-mini

# With CI set a missing service fails a test instead of skipping it: nothing is
# left out in silence.
test soak chaos: export CI := $(or $(CI),true)

test: bin/testenv
	$(WITH) $(SELF) checks

# In under three minutes: without the race detector, and without the tests that say so.
short: bin/testenv
	$(WITH) $(GO) test -short ./...

checks: vet lint tidy vuln unit fuzz

vet:
	$(GO) vet ./...
	$(GO) vet $(TAGS) ./examples/drivers/libvirt/...

lint:
	$(TOOL) golangci-lint run ./...
	$(TOOL) golangci-lint fmt --diff

tidy:
	$(GO) mod tidy -diff

# Findings fail (exit code 3), and so does code that cannot be loaded; that the
# database cannot be reached does not.
vuln:
	@echo govulncheck ./...; \
	code=0; out=$$(timeout 300 $(TOOL) govulncheck ./... 2>&1) || code=$$?; \
	case $$code,$$out in \
	0,*) ;; \
	124,* | *"fetching vulnerabilities"*) echo "govulncheck: left out, its database cannot be reached" ;; \
	*) echo "$$out"; exit $$code ;; \
	esac

# The ten slowest packages stand at the end, so that a slow one is seen before all are.
unit:
	@mkdir -p bin; \
	echo "$(GO) test -race $(TAGS) -timeout $(TIMEOUT) ./..."; \
	{ $(GO) test -race $(TAGS) -timeout $(TIMEOUT) ./... 2>&1; echo $$? >bin/unit.code; } | tee bin/unit.log; \
	echo "the ten slowest packages, in seconds:"; \
	awk '($$1 == "ok" || $$1 == "FAIL") && $$3 ~ /^[0-9.]+s$$/ { sub(/s$$/, "", $$3); print $$3, $$2 }' bin/unit.log | sort -rn | head -10; \
	exit $$(cat bin/unit.code)

# So many inputs, not so much time: until Go 1.27 a target may fail for no reason when
# its time is over (golang/go#75804).
fuzz:
	@grep -rH --include='*_test.go' '^func Fuzz' . | sed 's|/[^/]*:func | |; s|(.*||' | sort | while read -r dir target; do \
		echo "$(GO) test -run '^$$' -fuzz ^$$target\$$ -fuzztime $(FUZZ) $$dir"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ) "$$dir" </dev/null || exit 1; \
	done

bench: bin/testenv
	$(WITH) $(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 60m \
		$$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -n 1 dirname | sort -u)

# A cloud of nova-mini, and everything that can die in it: about 10 minutes. CHAOS is how long it is
# disturbed; ARMATURE_CHAOS_SEED repeats the choices of a run.
CHAOS ?= 7m

chaos: bin/testenv
	$(WITH) env ARMATURE_CHAOS=$(CHAOS) $(GO) test -run '^TestChaos$$' -count 1 -timeout 30m -v ./examples/nova-mini/e2e

soak: bin/testenv
	$(WITH) env ARMATURE_TEST_LATE=2m ARMATURE_TEST_OUTAGE=60s $(GO) test -race $(TAGS) -count $(ROUNDS) -timeout 6h ./...

# The Go code of the .proto files; TestGenerated sees that it is what is committed.
PROTOS = $(sort $(shell find . -name '*.proto' -printf '%P\n'))
OUT   ?= .

generate:
	$(GO) build -modfile=tools/go.mod -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH="$(CURDIR)/bin:$$PATH" protoc -I . --go_out=$(OUT) --go_opt=paths=source_relative \
		--go-grpc_out=$(OUT) --go-grpc_opt=paths=source_relative $(PROTOS)
	mkdir -p $(OUT)/examples/drivers/python
	protoc $(addprefix -I ,$(dir $(PROTOS))) --plugin=protoc-gen-grpc=$$(command -v grpc_python_plugin) \
		--python_out=$(OUT)/examples/drivers/python --grpc_out=$(OUT)/examples/drivers/python $(notdir $(PROTOS))

fmt:
	$(TOOL) golangci-lint fmt

clean:
	rm -rf bin

bin/testenv:
	$(GO) build -o $@ ./internal/testenv/run
	$(GO) build -modfile=tools/nats.mod -o bin/nats-server github.com/nats-io/nats-server/v2
