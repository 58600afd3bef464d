// Ask a running server from Go, with stubs made of the .proto files:
//
//	cd examples/go
//	protoc -I ../../proto --go_out=. --go_opt=module=lora-router --go-grpc_out=. \
//	    --go-grpc_opt=module=lora-router router/v1/inference.proto
//	go mod init lora-router && go mod tidy
//	go run . [HOST:PORT] [TEXT]
//
// Where it speaks TLS and asks who calls:
//
//	go run . --ca ca.pem --token TOKEN HOST:PORT
//	go run . --ca ca.pem --cert client.pem --key client.key HOST:PORT
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "lora-router/router/v1"
)

var (
	ca    = flag.String("ca", "", "certificates (PEM) that the server's must come from; none: plain text")
	cert  = flag.String("cert", "", "certificate of this client (PEM)")
	key   = flag.String("key", "", "its private key (PEM)")
	token = flag.String("token", "", "who calls")
)

// bearer sends a token with every call, and never in plain text.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

func options() ([]grpc.DialOption, error) {
	if *ca == "" {
		if *token+*cert+*key != "" {
			return nil, errors.New("--token, --cert and --key need --ca")
		}
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, nil
	}
	roots, err := os.ReadFile(*ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%s has no certificate", *ca)
	}
	if *cert != "" || *key != "" {
		own, err := tls.LoadX509KeyPair(*cert, *key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	found := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config))}
	if *token != "" {
		found = append(found, grpc.WithPerRPCCredentials(bearer(*token)))
	}
	return found, nil
}

func name(decision *pb.Decision) string {
	if decision.GetAdapter() == "" {
		return "base"
	}
	return decision.GetAdapter()
}

func ask(target, text string) error {
	dial, err := options()
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(target, dial...)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewInferenceServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	most := int32(32)
	input := &pb.Input{Input: &pb.Input_Text{Text: text}}
	sampling := &pb.Sampling{MaxTokens: &most}

	answer, err := client.Generate(ctx, &pb.GenerateRequest{Input: input, Sampling: sampling})
	if err != nil {
		return err
	}
	fmt.Printf("[%s] %s\n", name(answer.GetDecision()), answer.GetText())

	stream, err := client.StreamGenerate(ctx, &pb.StreamGenerateRequest{Input: input, Sampling: sampling})
	for err == nil {
		var event *pb.StreamGenerateResponse
		if event, err = stream.Recv(); err != nil {
			break
		}
		if started := event.GetStarted(); started != nil {
			fmt.Printf("[%s] ", name(started.GetDecision()))
		}
		if delta := event.GetDelta(); delta != nil {
			fmt.Print(delta.GetText())
		}
		if finished := event.GetFinished(); finished != nil {
			fmt.Printf("\n%s\n", finished.GetReason())
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func main() {
	flag.Parse()
	target, text := "127.0.0.1:50051", "Which ICD-10-CM chapter does Beard ringworm belong to?"
	if flag.NArg() > 0 {
		target = flag.Arg(0)
	}
	if flag.NArg() > 1 {
		text = flag.Arg(1)
	}
	if err := ask(target, text); err != nil {
		found := status.Convert(err)
		fmt.Fprintf(os.Stderr, "%s: %s\n", found.Code(), found.Message())
		os.Exit(1)
	}
}
